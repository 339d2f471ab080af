"use strict";
{
  const data = page.data, count = data.names.length;
  const map = document.getElementById("map"), detail = document.getElementById("detail");
  const stop = document.getElementById("stop"), colour = document.getElementById("colour");
  const pictures = document.getElementById("pictures"), paths = document.getElementById("paths");
  /* Okabe and Ito's colours for groups; from dark blue through green to yellow for activations. */
  const kinds = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#f0e442"];
  const ramp = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const extreme = (of) => data.activations.reduce((a, b) => of(a, b));
  const low = extreme(Math.min), high = extreme(Math.max);

  const between = (share) => {
    const at = share * (ramp.length - 1), k = Math.min(Math.floor(at), ramp.length - 2);
    return `rgb(${ramp[k].map((a, c) => Math.round(a + (at - k) * (ramp[k + 1][c] - a))).join(",")})`;
  };
  const shade = (n) => colour.value === "group" ? kinds[data.groups[n] % kinds.length]
    : between(high > low ? (data.activations[n] - low) / (high - low) : 0.5);

  let chosen = null;
  data.stops.forEach((name, k) => stop.append(page.make("option", { value: k }, name)));
  const trails = page.svg("g"), points = page.svg("g");
  map.append(trails, points);
  const images = data.names.map((name, n) => {
    const image = page.svg("g", { class: "image", "data-image": n }, page.svg("title", {}, name));
    image.addEventListener("pointerenter", () => choose(n));
    image.addEventListener("click", () => choose(n));
    points.append(image);
    return image;
  });

  const place = (n, k) => {
    const box = map.getBoundingClientRect(), [x, y] = data.points[k][n], edge = pictures.checked ? 40 : 24;
    return [edge + (x + 1) / 2 * (box.width - 2 * edge), edge + (y + 1) / 2 * (box.height - 2 * edge)];
  };
  const trail = (n, kind) => {
    const through = data.stops.map((_, k) => place(n, k)).slice(data.stops.length > 1 ? 1 : 0);
    trails.append(page.svg("polyline", { class: kind, points: through.map((p) => p.join(",")).join(" ") }));
    if (kind.includes("chosen")) through.forEach(([cx, cy]) => trails.append(page.svg("circle", { class: "stop", cx, cy, r: 2.5 })));
  };
  const move = () => {
    images.forEach((image, n) => { image.style.transform = `translate(${place(n, +stop.value).join("px,")}px)`; });
    trails.replaceChildren();
    if (paths.checked) images.forEach((_, n) => trail(n, "path"));
    if (chosen !== null) trail(chosen, "path chosen");
  };
  const dress = () => {
    const size = 44;
    images.forEach((image, n) => {
      const shown = pictures.checked
        ? [page.svg("image", { href: data.thumbnails[n], x: -size / 2, y: -size / 2, width: size, height: size }),
           page.svg("rect", { class: "frame", x: -size / 2, y: -size / 2, width: size, height: size, stroke: shade(n) })]
        : [page.svg("circle", { r: 6, fill: shade(n) })];
      image.replaceChildren(image.querySelector("title"), ...shown);
    });
    const legend = document.getElementById("legend");
    const dot = (background, kind) => { const i = page.make("i", { class: kind }); i.style.background = background; return i; };
    legend.replaceChildren(...(colour.value === "group"
      ? data.labels.map((label, g) => page.make("span", {}, dot(kinds[g % kinds.length], ""),
          `${label} (${data.groups.filter((h) => h === g).length})`))
      : [page.make("span", {}, `${page.number(low)} `, dot(`linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(between)})`, "ramp"),
          page.number(high))]));
  };
  const choose = (n) => {
    if (chosen !== null) images[chosen].classList.remove("chosen");
    chosen = n;
    images[n].classList.add("chosen");
    points.append(images[n]);
    const here = data.points[+stop.value], apart = (m) => Math.hypot(here[m][0] - here[n][0], here[m][1] - here[n][1]);
    const near = data.names.map((_, m) => m).filter((m) => m !== n).sort((a, b) => apart(a) - apart(b)).slice(0, 6);
    detail.replaceChildren(
      page.make("img", { src: data.thumbnails[n], alt: data.names[n] }),
      page.make("p", {}, page.make("b", {}, data.names[n])),
      page.make("p", {}, `activation ${page.number(data.activations[n])} at ${data.positions[n].join(",")}`),
      page.make("p", {}, `group ${data.labels[data.groups[n]]}`),
      page.make("h3", {}, "nearest here"),
      page.make("div", { class: "near" }, ...near.map((m) => {
        const button = page.make("button", { type: "button", title: data.names[m] }, page.make("img", { src: data.thumbnails[m], alt: data.names[m] }));
        button.addEventListener("click", () => choose(m));
        return button;
      })));
    move();
  };

  stop.addEventListener("change", () => chosen === null ? move() : choose(chosen));
  paths.addEventListener("change", move);
  colour.addEventListener("change", dress);
  pictures.addEventListener("change", () => { dress(); move(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLInputElement) return;
    const turn = { n: 1, p: -1 }[event.key], way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (turn) choose(chosen === null ? 0 : (chosen + turn + count) % count);
    if (way && !(event.target instanceof HTMLSelectElement)) {
      stop.value = Math.min(Math.max(+stop.value + way, 0), data.stops.length - 1);
      stop.dispatchEvent(new Event("change"));
    }
    if (turn || (way && !(event.target instanceof HTMLSelectElement))) event.preventDefault();
  });
  addEventListener("resize", move);
  dress();
  move();
}
