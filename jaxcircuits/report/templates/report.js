const diagrams = [...document.querySelectorAll("[data-diagram]")].map((element) => new Diagram(element, page.data[Number(element.dataset.diagram)]));
