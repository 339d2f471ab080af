"use strict";
/* What the scripts of all pages share. */
const page = {
  data: JSON.parse(document.getElementById("data").textContent),

  /* An element: page.make("p", {class: "note"}, "text", child); svg elements through page.svg. Text is never markup. */
  make(name, attributes = {}, ...children) {
    return page.fill(document.createElement(name), attributes, children);
  },
  svg(name, attributes = {}, ...children) {
    return page.fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  },
  fill(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  },

  number(value, digits = 3) {
    if (value === null || value === undefined) return "constant";
    return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(digits)).toString();
  },
};

/* Light or dark: as the system has it until the button is pressed; then as it was left. */
{
  const root = document.documentElement;
  const dark = () => getComputedStyle(root).colorScheme.trim() === "dark";
  let kept = null;
  try { kept = localStorage.getItem("jaxcircuits-theme"); } catch { /* a page from disk may have no storage */ }
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  const told = () => document.dispatchEvent(new CustomEvent("theme"));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("jaxcircuits-theme", root.dataset.theme); } catch { /* the same */ }
    told();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", told);
}
