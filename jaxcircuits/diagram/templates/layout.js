/* Where nodes and edges stand at one level: by the rules of layout.py. */
const WIDTH = 1200, HEIGHT = 860, GAPS = [190, 400], PITCH = 52, FILL = 0.86, SMALL = 32, SIDE = 4;
const HEADER = 34, CORRIDOR = 22, BETWEEN = 16, FIXED = 0.7, LETTER = 7.9, MARGIN = 70;

/* Which pairs (edges first, then links) and nodes lie on a path from the pixels to the feature, for the best kernels. */
function flowOf(graph, kernels) {
  const { source, target, isEdge, rank, pairs } = graph;
  const reached = new Uint8Array(graph.nodes), reaching = new Uint8Array(graph.nodes);
  const there = (p) => !isEdge[p] || rank[p] < kernels;
  for (const node of graph.inputs) reached[node] = 1;
  reaching[graph.feature] = 1;
  for (const p of graph.byTarget) if (there(p) && reached[source[p]]) reached[target[p]] = 1;
  for (const p of graph.bySource) if (there(p) && reaching[target[p]]) reaching[source[p]] = 1;
  const on = new Uint8Array(pairs), nodes = new Uint8Array(graph.nodes);
  for (let p = 0; p < pairs; p++) on[p] = there(p) && reached[source[p]] && reaching[target[p]] ? 1 : 0;
  for (let n = 0; n < graph.nodes; n++) nodes[n] = reached[n] && reaching[n] ? 1 : 0;
  nodes[graph.feature] = 1;
  return { on, nodes };
}

function sizesOf(fixed, total) {
  const pitch = Math.min(PITCH, (HEIGHT - fixed) / Math.max(total, 1));
  const beside = Math.max(1, Math.min(SIDE, Math.ceil(SMALL / pitch)));
  return { pitch, beside, side: Math.min(pitch * beside, PITCH) * FILL };
}

function layoutOf(graph, data, flow) {
  const members = data.blocks.map(() => []);
  for (const node of graph.inOrder) if (flow.nodes[node]) members[data.nodes[node][0]].push(node);
  const block = (node) => data.nodes[node][0];
  const passing = new Set();
  for (let p = 0; p < graph.pairs; p++) {
    if (flow.on[p]) passing.add(`${block(graph.source[p])},${block(graph.target[p])}`);
  }
  const x = new Float64Array(graph.nodes), y = new Float64Array(graph.nodes), size = new Float64Array(graph.nodes);
  const within = new Float64Array(graph.nodes), tops = [], corridors = {};
  for (const group of members) group.forEach((node, k) => { within[node] = (k + 0.5) / group.length - 0.5; });
  const step = Math.max(GAPS[0], Math.min(GAPS[1], WIDTH / Math.max(data.columns.length - 1, 1)));
  data.columns.forEach((column, depth) => {
    const shown = column.filter(([b, to]) => (to === null ? members[b].length : passing.has(`${b},${to}`)));
    let fixed = BETWEEN * (shown.length - 1), total = 0;
    for (const [b, to] of shown) { fixed += to === null ? HEADER : CORRIDOR; if (to === null) total += members[b].length; }
    const low = Math.min(1, (FIXED * HEIGHT) / Math.max(fixed, 1));  // in a column of many rows
    const header = low * HEADER, corridor = low * CORRIDOR, between = low * BETWEEN;
    fixed *= low;
    const brick = sizesOf(fixed, total), room = (HEIGHT - fixed) / (2 * Math.max(shown.length - 1, 1));
    const over = Math.min(Math.max(0, brick.side - brick.pitch), room);  // bricks are higher than their share
    fixed += over * (shown.length - 1);
    const { beside, side, pitch } = sizesOf(fixed, total);
    let at = (HEIGHT - fixed - total * pitch) / 2;
    for (const [b, to] of shown) {
      if (to !== null) { corridors[`${depth},${b},${to}`] = [at + corridor / 2, corridor]; at += corridor + between + over; continue; }
      tops[b] = [depth * step, at - Math.max(0, side - pitch) / 2];
      at += header;
      members[b].forEach((node, k) => {
        x[node] = depth * step + (k % beside - (beside - 1) / 2) * side * 1.2;
        y[node] = at + pitch / 2; size[node] = side; at += pitch;
      });
      at += between + over;
    }
  });
  const curves = new Array(graph.pairs);
  for (let p = 0; p < graph.pairs; p++) {
    if (!flow.on[p]) continue;
    const a = graph.source[p], b = graph.target[p], points = [[x[a] + size[a] / 2, y[a]]];
    for (let depth = data.blocks[block(a)][3] + 1; depth < data.blocks[block(b)][3]; depth++) {
      const [middle, height] = corridors[`${depth},${block(a)},${block(b)}`], h = middle + within[a] * height;
      points.push([depth * step - PITCH, h], [depth * step + PITCH, h]);
    }
    points.push([x[b] - size[b] / 2, y[b]]);
    curves[p] = points;
  }
  return { x, y, size, tops, members, curves, step, width: step * (data.columns.length - 1) };
}

/* How much smaller a name must be so as not to reach into the next column. */
const shrunk = (name, step) => Math.min(1, (step - 8) / (LETTER * name.length));

const bend = (a, b) => (b[0] - a[0]) * 0.45;

function pathOf(points) {
  const r = (v) => Math.round(v * 100) / 100;
  let text = `M${r(points[0][0])} ${r(points[0][1])}`;
  for (let k = 1; k < points.length; k++) {
    const a = points[k - 1], b = points[k], d = bend(a, b);
    text += `C${r(a[0] + d)} ${r(a[1])} ${r(b[0] - d)} ${r(b[1])} ${r(b[0])} ${r(b[1])}`;
  }
  return text;
}

/* How far a point is from a curve, and whether that is less than `least`. */
function distance(points, px, py, least) {
  let best = least;
  for (let k = 1; k < points.length; k++) {
    const a = points[k - 1], b = points[k], d = bend(a, b);
    if (px < Math.min(a[0], b[0]) - least || px > Math.max(a[0], b[0]) + least) continue;
    if (py < Math.min(a[1], b[1]) - least || py > Math.max(a[1], b[1]) + least) continue;
    let u = a[0], v = a[1];
    for (let s = 1; s <= 24; s++) {
      const t = s / 24, q = 1 - t, f = 3 * q * q * t, g = 3 * q * t * t;
      const cx = q * q * q * a[0] + f * (a[0] + d) + g * (b[0] - d) + t * t * t * b[0];
      const cy = (q * q * q + f) * a[1] + (g + t * t * t) * b[1];
      const dx = cx - u, dy = cy - v, along = ((px - u) * dx + (py - v) * dy) / (dx * dx + dy * dy || 1);
      const w = Math.max(0, Math.min(1, along));
      best = Math.min(best, Math.hypot(px - u - w * dx, py - v - w * dy));
      u = cx; v = cy;
    }
  }
  return best;
}
