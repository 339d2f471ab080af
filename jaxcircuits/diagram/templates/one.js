const diagram = new Diagram(document.getElementById("diagram"), page.data);
