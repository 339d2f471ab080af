/* The diagram of one circuit inside an element. */
class Diagram {
  constructor(element, data) {
    this.element = element;
    this.data = data;
    this.graph = this.indexed(data);
    this.weights = data.layers.map(([, , , text]) => Int8Array.from(atob(text), (c) => (c.charCodeAt(0) << 24) >> 24));
    this.view = { k: 1, x: 0, y: 0 };
    this.chosen = null;
    this.found = -1;
    this.build();
    this.show(Math.min(data.kept, data.most));
    this.fit();
    this.listen();
  }

  indexed(data) {
    const { source, target, rank } = data.edges, edges = source.length;
    const from = [...source, ...data.links.map((l) => l[0])], to = [...target, ...data.links.map((l) => l[1])];
    const pairs = from.length, index = [...from.keys()];
    return {
      source: from, target: to, rank, pairs, edges, nodes: data.nodes.length, feature: data.feature,
      isEdge: from.map((_, p) => p < edges),
      byTarget: index.slice().sort((a, b) => to[a] - to[b]),
      bySource: index.slice().sort((a, b) => from[b] - from[a]),
      inputs: data.nodes.map((_, n) => n).filter((n) => data.blocks[data.nodes[n][0]][1] === "input"),
      inOrder: data.nodes.map((_, n) => n).sort((a, b) => data.nodes[a][2] - data.nodes[b][2]),
      place: (() => { const seen = data.layers.map(() => 0); return data.edges.layer.map((l) => seen[l]++); })(),
      best: data.edges.score.reduce((best, s) => Math.max(best, Math.abs(s ?? 0)), 1e-30),
    };
  }

  /* ---- words ---- */
  channel(node) {
    const [block, channel] = this.data.nodes[node], [name, kind, whole] = this.data.blocks[block];
    if (kind === "input") return this.data.channels === 3 ? ["red", "green", "blue"][channel] : `channel ${channel}`;
    if (kind === "direction") return "the direction";
    return whole ? "all channels" : `channel ${channel}`;
  }
  layer(node) { return this.title(this.data.nodes[node][0]); }
  title(block) {
    const [name, kind] = this.data.blocks[block];
    if (kind === "input") return "image";
    return kind === "layer" || kind === "direction" ? name : `${kind} after ${name}`;
  }
  header(block) {
    const kind = this.data.blocks[block][1];
    return kind === "layer" || kind === "direction" || kind === "input" ? this.title(block) : kind;
  }
  nodeWords(node) {
    const { into, out } = this.near(node);
    return `${this.layer(node)}, ${this.channel(node)}, ${into.length} in, ${out.length} out`;
  }
  edgeTitle(e) {
    const { layer, i, o } = this.data.edges, [name] = this.data.layers[layer[e]];
    return `${name}: ${i[e]} → ${o[e]}`;
  }
  sign(p) { return p >= this.graph.edges ? "neutral" : this.data.edges.total[p] > 0 ? "more" : this.data.edges.total[p] < 0 ? "less" : "neutral"; }
  strength(p) {
    const score = p < this.graph.edges ? this.data.edges.score[p] : null;
    return score === null ? 0.35 : Math.sqrt(Math.abs(score) / this.graph.best);
  }
  near(node) {
    const into = [], out = [];
    for (let p = 0; p < this.graph.pairs; p++) {
      if (!this.flow.on[p]) continue;
      if (this.graph.target[p] === node) into.push(p);
      if (this.graph.source[p] === node) out.push(p);
    }
    return { into, out };
  }

  /* ---- what is there ---- */
  build() {
    const { make, svg } = page, id = this.id = `d${Diagram.count = (Diagram.count ?? 0) + 1}`;
    this.slider = make("input", { type: "range", min: 0, max: 1000, step: 1, id: `${id}-keep`, class: "keep" });
    this.slider.disabled = !this.data.scored;
    this.level = make("output", { for: `${id}-keep`, class: "level" });
    this.own = make("button", { type: "button", class: "own", title: "Back to the circuit as it was saved" }, "as saved");
    this.search = make("input", { type: "search", placeholder: "layer:channel", class: "search", "aria-label": "Search channels", spellcheck: "false", size: 16 });
    this.matches = make("output", { class: "soft matches" });
    const button = (text, label, act) => {
      const b = make("button", { type: "button", "aria-label": label, title: label }, text);
      b.addEventListener("click", act);
      return b;
    };
    this.controls = make("div", { class: "controls", role: "toolbar", "aria-label": "Diagram" },
      make("label", { for: `${id}-keep` }, "keep"), this.slider, this.level, this.data.scored ? this.own : null,
      make("span", { class: "between" }), this.search, this.matches,
      button("−", "Zoom out", () => this.zoom(1 / 1.4)), button("+", "Zoom in", () => this.zoom(1.4)),
      button("fit", "Show everything", () => this.fit()), button("clear", "Clear the selection (Escape)", () => this.isolate(null)),
      button("SVG", "Save what is shown as SVG", () => this.save()));
    this.note = make("p", { class: "note" }, this.data.why);
    this.svg = svg("svg", { class: "stage", role: "group", "aria-label": `Circuit of ${this.data.label}. Tab goes through its channels, arrows along its kernels, Enter isolates, Escape clears.` });
    this.world = svg("g", { class: "world" });
    this.edgesGroup = svg("g", { class: "edges" });
    this.nodesGroup = svg("g", { class: "nodes" });
    this.tops = svg("g", { class: "tops" });
    this.defs = svg("defs");
    this.world.append(this.defs, this.edgesGroup, this.tops, this.nodesGroup);
    this.svg.append(this.world);
    this.tip = make("div", { class: "tip", role: "status", hidden: "" });
    this.panel = make("aside", { class: "panel", "aria-live": "polite", "aria-label": "Selection" });
    this.element.append(this.controls, make("div", { class: "both" }, make("div", { class: "room" }, this.svg, this.tip), this.panel));
    this.buildEdges();
    this.buildNodes();
  }

  buildEdges() {
    const { svg } = page, { pairs, edges } = this.graph;
    this.paths = new Array(pairs);
    // links lie lowest, then kernels, the best on top
    const order = [...Array(pairs).keys()].sort((a, b) => (a >= edges) - (b >= edges) || b - a).reverse();
    order.sort((a, b) => (a < edges) - (b < edges) || (a < edges ? b - a : 0));
    for (const p of order) {
      const s = this.strength(p), link = p >= edges;
      this.paths[p] = svg("path", {
        class: `edge ${link ? "link" : this.sign(p)}`, "data-edge": p,
        style: `--w:${(link ? 0.9 : 0.5 + 4.5 * s).toFixed(2)}px;--o:${(link ? 0.4 : 0.25 + 0.65 * s).toFixed(2)}`,
      });
      this.edgesGroup.append(this.paths[p]);
    }
  }

  buildNodes() {
    const { svg } = page;
    this.marks = new Array(this.graph.nodes);
    for (const node of this.graph.inOrder.slice().sort((a, b) => this.data.blocks[this.data.nodes[a][0]][3] - this.data.blocks[this.data.nodes[b][0]][3] || this.data.nodes[a][0] - this.data.nodes[b][0])) {
      const [block, channel, , picture] = this.data.nodes[node], kind = this.data.blocks[block][1];
      const mark = svg("g", { class: `node ${kind === "+" || kind === "×" || kind === "all" ? "junction" : kind}`, tabindex: 0, role: "button", "aria-pressed": "false", "data-node": node });
      if (node === this.data.feature) mark.classList.add("feature");
      if (kind === "input" && this.data.channels === 3) mark.classList.add(["red", "green", "blue"][channel]);
      const round = kind === "layer" || kind === "direction" ? 0.1 : 0.5;
      if (picture) {
        // of a strip of squares the first is shown
        const pattern = svg("pattern", { id: `${this.id}-${node}`, width: 1, height: 1, patternContentUnits: "objectBoundingBox" });
        pattern.append(svg("image", { href: picture, height: 1, width: 64, preserveAspectRatio: "xMinYMin meet" }));
        this.defs.append(pattern);
      }
      mark.append(svg("rect", { x: -0.5, y: -0.5, width: 1, height: 1, rx: round, class: picture ? "frame" : "body", fill: picture ? `url(#${this.id}-${node})` : null }));
      const text = kind === "+" || kind === "×" ? kind : kind === "all" ? "∗" : kind === "input" ? this.channel(node)[0].toUpperCase() : channel >= 0 ? `${channel}` : "all";
      mark.append(svg("text", picture ? { x: -0.47, y: -0.3, class: "number" } : { x: 0, y: 0.11, class: "number middle" }, text));
      this.marks[node] = mark;
      this.nodesGroup.append(mark);
    }
  }

  show(kernels) {
    this.kernels = kernels;
    this.flow = flowOf(this.graph, kernels);
    this.places = layoutOf(this.graph, this.data, this.flow);
    const { x, y, size, curves, tops, members } = this.places;
    let count = 0;
    this.paths.forEach((path, p) => {
      const on = this.flow.on[p];
      path.toggleAttribute("hidden", !on);
      if (on) { path.setAttribute("d", pathOf(curves[p])); if (p < this.graph.edges) count++; }
    });
    this.marks.forEach((mark, node) => {
      const on = this.flow.nodes[node];
      mark.toggleAttribute("hidden", !on);
      if (on) mark.setAttribute("transform", `translate(${x[node].toFixed(2)} ${y[node].toFixed(2)}) scale(${size[node].toFixed(3)})`);
    });
    this.marks.forEach((mark, node) => { if (this.flow.nodes[node]) mark.setAttribute("aria-label", this.nodeWords(node)); });
    this.tops.replaceChildren(...tops.map((at, block) => at && members[block].length ? this.top(block, at) : null).filter(Boolean));
    this.effective = count;
    // many lines are drawn thinner and fainter
    this.world.style.setProperty("--dense", Math.max(0.4, Math.min(1, Math.sqrt(300 / count))).toFixed(3));
    const keep = kernels / this.data.relevant, n = page.number;
    this.level.textContent = `${n(keep, 2)} · ${n(kernels)} kernels, ${n(count)} on a path`;
    this.slider.value = Math.round((1000 * Math.log(kernels)) / Math.log(Math.max(this.data.most, 2)));
    this.shownPlace = Number(this.slider.value);
    this.slider.setAttribute("aria-valuetext", `keep ${n(keep, 2)}, ${kernels} kernels`);
    this.own.disabled = kernels === Math.min(this.data.kept, this.data.most);
    this.svg.dataset.kernels = kernels;
    this.svg.dataset.effective = count;
    if (this.chosen && !(this.chosen.node !== undefined ? this.flow.nodes[this.chosen.node] : this.flow.on[this.chosen.edge])) this.chosen = null;
    this.isolate(this.chosen);
    this.seek();
  }

  /* How many kernels a place of the slider stands for; every step is at least one kernel. */
  wanted(place) {
    const most = this.data.most, step = Math.sign(place - this.shownPlace);
    const kernels = Math.round(Math.exp((place / 1000) * Math.log(Math.max(most, 2))));
    return Math.max(1, Math.min(most, step * (kernels - this.kernels) > 0 ? kernels : this.kernels + step));
  }

  top(block, [x, y]) {
    const { svg } = page, [, kind] = this.data.blocks[block], there = this.places.members[block].length;
    const small = { "+": "sum", "×": "product", all: "mixture", input: "pixels" }[kind];
    const words = small ?? `${there} channel${there > 1 ? "s" : ""}`;
    const name = this.header(block);
    return svg("g", { class: "top", transform: `translate(${x} ${y})` },
      svg("text", { y: 10, class: "name", style: `font-size:${(13 * shrunk(name, this.places.step)).toFixed(1)}px` }, name),
      svg("text", { y: 24, class: "count" }, kind === "direction" ? "direction" : words));
  }

  /* ---- selection ---- */
  through(start) {
    const { source, target, pairs, byTarget, bySource, nodes } = this.graph;
    const down = new Uint8Array(nodes), up = new Uint8Array(nodes), on = new Uint8Array(pairs);
    if (start.node !== undefined) { down[start.node] = up[start.node] = 1; }
    else { down[target[start.edge]] = up[source[start.edge]] = 1; on[start.edge] = 1; }
    for (const p of byTarget) if (this.flow.on[p] && down[source[p]]) { down[target[p]] = 1; on[p] = 1; }
    for (const p of bySource) if (this.flow.on[p] && up[target[p]]) { up[source[p]] = 1; on[p] = 1; }
    return { on, nodes: down.map((d, n) => d || up[n]) };
  }

  isolate(chosen) {
    this.chosen = chosen;
    const part = chosen ? this.through(chosen) : null;
    this.world.classList.toggle("isolated", !!part);
    this.paths.forEach((path, p) => path.classList.toggle("on", !!part && !!part.on[p]));
    this.marks.forEach((mark, node) => {
      mark.classList.toggle("on", !!part && !!part.nodes[node]);
      mark.setAttribute("aria-pressed", String(!!chosen && chosen.node === node));
    });
    this.paths.forEach((path, p) => path.classList.toggle("chosen", !!chosen && chosen.edge === p));
    this.fillPanel(chosen, part);
  }

  fillPanel(chosen, part) {
    const { make } = page;
    if (!chosen) { this.panel.replaceChildren(...this.overview()); return; }
    const back = make("button", { type: "button", class: "back" }, "← whole circuit");
    back.addEventListener("click", () => this.isolate(null));
    const kernels = part.on.slice(0, this.graph.edges).reduce((a, b) => a + b, 0);
    const flows = make("p", { class: "soft" }, `${page.number(kernels)} kernels flow through it`);
    if (chosen.edge !== undefined) { this.panel.replaceChildren(back, ...this.edgeCard(chosen.edge, 132), flows); return; }
    const { into, out } = this.near(chosen.node), lists = [];
    for (const [name, some] of [["in", into], ["out", out]]) {
      const kernels = some.filter((p) => p < this.graph.edges).sort((a, b) => this.data.edges.rank[a] - this.data.edges.rank[b]);
      if (!kernels.length) continue;
      const shown = kernels.slice(0, 12);
      lists.push(make("h3", {}, `${kernels.length} ${name}${kernels.length > 12 ? ", the best 12" : ""}`),
        make("div", { class: "kernels" }, ...shown.map((e) => {
          const b = make("button", { type: "button", class: `kernel ${this.sign(e)}`, title: this.edgeTitle(e), "aria-label": `kernel ${this.edgeTitle(e)}, ${this.sign(e) === "less" ? "inhibitory" : "excitatory"}` },
            this.picture(e, 40), make("span", {}, `${name === "in" ? this.data.edges.i[e] : this.data.edges.o[e]}`));
          b.addEventListener("click", () => this.isolate({ edge: e }));
          return b;
        })));
    }
    this.panel.replaceChildren(back, ...this.nodeCard(chosen.node, true), flows, ...lists);
  }

  overview() {
    const { make } = page, n = page.number, rows = [];
    const parts = (name) => name.split(/(?<=\.)/).flatMap((part) => [part, make("wbr")]);  // broken at dots
    const line = (kind, text) => make("p", { class: "key" }, make("span", { class: `dash ${kind}` }), text);
    this.data.layers.forEach(([name], l) => {
      let kernels = 0;
      for (let e = 0; e < this.graph.edges; e++) if (this.flow.on[e] && this.data.edges.layer[e] === l) kernels++;
      const block = this.data.blocks.findIndex((b) => b[0] === name && b[1] === "layer");
      rows.push(make("tr", {}, make("td", {}, ...parts(name)), make("td", {}, n(this.places.members[block]?.length ?? 0)), make("td", {}, n(kernels))));
    });
    return [
      this.effective ? null : make("p", { class: "nothing" }, "No path leads from the pixels to the feature at this level: its map is the same for every image."),
      make("h2", {}, "Kernels"),
      line("more", "excitatory: its weights sum above 0"), line("less", "inhibitory: below 0"),
      this.data.links.length ? line("link", "passed on without a kernel") : null,
      make("p", { class: "soft" }, this.data.scored ? "wider: higher score" : "no scores: one width"),
      !rows.length ? null : make("table", {}, make("tr", {}, make("th", {}, "layer"), make("th", {}, "channels"), make("th", {}, "kernels")), ...rows),
      this.data.said ? make("p", { class: "soft" }, this.data.said) : null,
      make("p", { class: "soft note" }, this.data.why[0].toUpperCase() + this.data.why.slice(1) + "."),
      make("p", { class: "faint" }, "Click a channel or a kernel to isolate what flows through it. Wheel zooms, dragging moves. Tab and arrows go from channel to channel, Enter isolates, Escape clears."),
    ].filter(Boolean);
  }

  edgeCard(e, side) {
    const { make } = page, { score, total, rank } = this.data.edges, n = page.number;
    const sign = this.sign(e), [, h, w] = this.data.layers[this.data.edges.layer[e]];
    const lines = [make("b", {}, this.edgeTitle(e))];
    lines.push(make("span", { class: `word ${sign}` }, sign === "more" ? "excitatory" : sign === "less" ? "inhibitory" : "sum 0"));
    lines.push(make("span", {}, score[e] === null ? "no score stored" : `score ${n(score[e])}, rank ${n(rank[e] + 1)}`));
    lines.push(make("span", { class: "soft" }, `${h} × ${w}, sum ${n(total[e])}, largest ${n(this.data.edges.largest[e])}`));
    return [make("div", { class: "card" }, this.picture(e, side), make("div", { class: "lines" }, ...lines))];
  }

  nodeCard(node, all = false) {
    const { make } = page, picture = this.data.nodes[node][3], { into, out } = this.near(node);
    const sum = (some) => some.reduce((total, p) => total + (this.data.edges.score[p] ?? 0), 0);
    const lines = [make("b", {}, this.layer(node)), make("span", {}, this.channel(node) + (node === this.data.feature ? ": the feature" : ""))];
    if (this.data.scored && into.length) lines.push(make("span", {}, `score ${page.number(sum(into))} in${out.length ? `, ${page.number(sum(out))} out` : ""}`));
    lines.push(make("span", { class: "soft" }, `${into.length} in, ${out.length} out`));
    const card = [make("div", { class: "card" }, make("div", { class: "lines" }, ...lines))];
    if (picture) card.push(make("img", { class: "strip", src: picture, alt: `pictures of ${this.layer(node)}, ${this.channel(node)}` }));
    if (!all) {
      const best = into.filter((p) => p < this.graph.edges).slice(0, 6);
      if (best.length) card.push(make("div", { class: "kernels" }, ...best.map((e) => make("span", { class: `kernel ${this.sign(e)}` }, this.picture(e, 34), make("span", {}, `${this.data.edges.i[e]}`)))));
    }
    return card;
  }

  /* A kernel's weights as a picture: orange above zero, blue below, by its own largest. */
  picture(e, side) {
    const l = this.data.edges.layer[e], [, h, w] = this.data.layers[l], at = this.graph.place[e] * h * w;
    const canvas = page.make("canvas", { width: w, height: h, class: "weights", style: `width:${side}px;height:${Math.round((side * h) / w)}px`, role: "img", "aria-label": `weights of kernel ${this.edgeTitle(e)}` });
    const style = getComputedStyle(this.element), colour = (name) => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    };
    const zero = colour("--paper"), more = colour("--more"), less = colour("--less");
    const context = canvas.getContext("2d"), pixels = context.createImageData(w, h);
    for (let k = 0; k < h * w; k++) {
      const value = this.weights[l][at + k] / 127, end = value > 0 ? more : less, t = Math.abs(value);
      for (let c = 0; c < 3; c++) pixels.data[4 * k + c] = zero[c] + (end[c] - zero[c]) * t;
      pixels.data[4 * k + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  /* ---- search ---- */
  seek() {
    const text = this.search.value.trim().toLowerCase();
    const [left, right] = text.includes(":") ? [text.slice(0, text.lastIndexOf(":")), text.slice(text.lastIndexOf(":") + 1)] : [null, text];
    const fits = (node) => {
      const [block, channel] = this.data.nodes[node], name = this.title(block).toLowerCase();
      if (left !== null) return name === left && (right === "" || String(channel) === right);
      return /^\d+$/.test(text) ? String(channel) === text : name.includes(text);
    };
    this.hits = text ? this.graph.inOrder.filter((node) => this.flow.nodes[node] && fits(node)) : [];
    this.hits.sort((a, b) => this.data.blocks[this.data.nodes[a][0]][3] - this.data.blocks[this.data.nodes[b][0]][3]);
    this.found = -1;
    const hits = new Set(this.hits);
    this.marks.forEach((mark, node) => mark.classList.toggle("found", hits.has(node)));
    this.world.classList.toggle("sought", hits.size > 0);
    this.matches.textContent = text ? `${hits.size} found` : "";
  }

  /* ---- zoom and pan ---- */
  size() { const box = this.svg.getBoundingClientRect(); return [Math.max(box.width, 50), Math.max(box.height, 50)]; }
  apply() {
    const { k, x, y } = this.view;
    this.world.setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    this.world.style.setProperty("--thin", k > 1 ? Math.pow(k, -0.7).toFixed(3) : 1);
  }
  fit() {
    const [w, h] = this.size(), top = -24, bottom = HEIGHT + 14, { step, width } = this.places;
    // with room for the names over the first and the last column
    const half = (column) => Math.max(MARGIN, ...column.filter(([, to]) => to === null).map(([block]) => {
      const name = this.header(block);
      return (LETTER * name.length * shrunk(name, step)) / 2 + 8;
    }));
    const left = -half(this.data.columns[0]), right = width + half(this.data.columns.at(-1));
    const k = Math.min(w / (right - left), h / (bottom - top));
    this.view = { k, x: (w - k * (left + right)) / 2, y: (h - k * (top + bottom)) / 2 };
    this.apply();
  }
  zoom(by, at = null) {
    const [w, h] = this.size(), [px, py] = at ?? [w / 2, h / 2], old = this.view.k;
    const k = Math.max(0.05, Math.min(60, old * by));
    this.view = { k, x: px - ((px - this.view.x) * k) / old, y: py - ((py - this.view.y) * k) / old };
    this.apply();
  }
  reveal(node) {
    const [w, h] = this.size(), { k } = this.view, margin = 30;
    const px = this.places.x[node] * k + this.view.x, py = this.places.y[node] * k + this.view.y;
    if (px < margin || px > w - margin) this.view.x += w / 2 - px;
    if (py < margin || py > h - margin) this.view.y += h / 2 - py;
    this.apply();
  }
  point(event) {
    const box = this.svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
  edgeAt([px, py]) {
    const { k, x, y } = this.view, least = 6 / k;
    let best = least, found = null;
    for (let p = 0; p < this.graph.pairs; p++) {
      if (!this.flow.on[p] || (this.chosen && !this.paths[p].classList.contains("on"))) continue;
      const d = distance(this.places.curves[p], (px - x) / k, (py - y) / k, best);
      if (d < best) { best = d; found = p; }
    }
    return found;
  }

  /* ---- events ---- */
  hover(mark, p, event) {
    const key = mark ? `n${mark.dataset.node}` : p === null ? "" : `e${p}`;
    if (key !== this.over) {
      this.over = key;
      for (const path of this.edgesGroup.querySelectorAll(".near")) path.classList.remove("near");
      const near = mark ? this.near(+mark.dataset.node) : null;
      for (const q of near ? [...near.into, ...near.out] : p === null ? [] : [p]) this.paths[q].classList.add("near");
      this.world.classList.toggle("hovering", key !== "");
      this.tip.toggleAttribute("hidden", key === "");
      if (mark) this.tip.replaceChildren(...this.nodeCard(+mark.dataset.node));
      else if (p !== null) this.tip.replaceChildren(...(p < this.graph.edges ? this.edgeCard(p, 96) : this.linkCard(p)));
    }
    if (key && event) {
      const [px, py] = this.point(event), [w, h] = this.size(), box = this.tip.getBoundingClientRect();
      this.tip.style.left = `${px + 18 + box.width > w ? Math.max(4, px - 14 - box.width) : px + 18}px`;
      this.tip.style.top = `${Math.max(4, Math.min(py + 14, h - box.height - 6))}px`;
    }
  }
  linkCard(p) {
    const { make } = page, a = this.graph.source[p], b = this.graph.target[p];
    return [make("div", { class: "lines" }, make("b", {}, `${this.layer(a)}, ${this.channel(a)}`), make("span", {}, `→ ${this.layer(b)}`), make("span", { class: "soft" }, "passed on without a kernel"))];
  }

  listen() {
    let drag = null;
    this.slider.addEventListener("input", () => this.show(this.wanted(Number(this.slider.value))));
    this.own.addEventListener("click", () => this.show(Math.min(this.data.kept, this.data.most)));
    this.search.addEventListener("input", () => this.seek());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.search.value = ""; this.seek(); this.isolate(null); }
      if (event.key !== "Enter" || !this.hits.length) return;
      this.found = (this.found + (event.shiftKey ? this.hits.length - 1 : 1)) % this.hits.length;
      this.isolate({ node: this.hits[this.found] });
      this.reveal(this.hits[this.found]);
      this.matches.textContent = `${this.found + 1} of ${this.hits.length}`;
    });
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), this.point(event));
    }, { passive: false });
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      drag = { at: [event.clientX, event.clientY], view: { ...this.view }, moved: false, mark: event.target.closest(".node") };
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (drag) {
        const dx = event.clientX - drag.at[0], dy = event.clientY - drag.at[1];
        drag.moved ||= Math.hypot(dx, dy) > 4;
        if (drag.moved) { this.view = { ...drag.view, x: drag.view.x + dx, y: drag.view.y + dy }; this.apply(); this.hover(null, null); }
        return;
      }
      const mark = event.target.closest(".node");
      this.hover(mark, mark ? null : this.edgeAt(this.point(event)), event);
    });
    this.svg.addEventListener("pointerup", (event) => {
      const done = drag;
      drag = null;
      if (!done || done.moved) return;
      if (done.mark) { this.isolate({ node: +done.mark.dataset.node }); return; }
      const p = this.edgeAt(this.point(event));
      this.isolate(p === null ? null : { edge: p });
    });
    this.svg.addEventListener("pointercancel", () => { drag = null; });
    this.svg.addEventListener("pointerleave", () => this.hover(null, null));
    // on an element of SVG this listener would make it a stop of Tab
    this.element.addEventListener("focusin", (event) => {
      const mark = event.target.closest(".node");
      if (mark?.matches(":focus-visible")) this.reveal(+mark.dataset.node);
    });
    this.element.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("theme", () => this.isolate(this.chosen));
    new ResizeObserver(() => this.fit()).observe(this.svg);
  }

  key(event) {
    if (event.key === "Escape") { this.isolate(null); this.hover(null, null); return; }
    const mark = event.target.closest?.(".node");
    if (!mark || event.ctrlKey || event.metaKey || event.altKey) return;
    const node = +mark.dataset.node, go = (to) => { if (to !== undefined) this.marks[to].focus(); };
    const { into, out } = this.near(node), column = this.data.blocks[this.data.nodes[node][0]][3];
    const best = (some) => some.slice().sort((a, b) => this.strength(b) - this.strength(a))[0];
    const beside = () => [...this.marks.keys()].filter((n) => this.flow.nodes[n] && this.data.blocks[this.data.nodes[n][0]][3] === column).sort((a, b) => this.places.y[a] - this.places.y[b]);
    const acts = {
      ArrowLeft: () => into.length && go(this.graph.source[best(into)]),
      ArrowRight: () => out.length && go(this.graph.target[best(out)]),
      ArrowUp: () => { const all = beside(); go(all[all.indexOf(node) - 1]); },
      ArrowDown: () => { const all = beside(); go(all[all.indexOf(node) + 1]); },
      Enter: () => this.isolate({ node }),
      " ": () => this.isolate({ node }),
      "+": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), 0: () => this.fit(),
    };
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  }

  /* What is shown, as a file of its own. */
  save() {
    const copy = this.svg.cloneNode(true), style = getComputedStyle(this.element);
    const names = ["paper", "panel", "line", "faint", "soft", "ink", "accent", "more", "less", "neutral"];
    const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).map((rule) => rule.cssText).filter((rule) => rule.startsWith("."));
    const colours = `svg{${names.map((name) => `--${name}:${style.getPropertyValue(`--${name}`)}`).join(";")};background:${style.getPropertyValue("--paper")};font-family:Arial,sans-serif}`;
    const [w, h] = this.size();
    page.fill(copy, { xmlns: "http://www.w3.org/2000/svg", width: w, height: h }, []);
    copy.prepend(page.svg("style", {}, [colours, ...rules].join("\n")));
    for (const gone of copy.querySelectorAll("[hidden]")) gone.remove();
    const address = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    const link = page.make("a", { href: address, download: `${this.data.label.replace(/[^\w.,@+=-]/g, "_")}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }
}
