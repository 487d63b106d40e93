// Pinned tokens over the layers of a tap at one position, by rank, probability or logprob.

// LEFT has room for the ranks of a vocabulary of a million.
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 220, 68, 12, 10, 34];
// Of the logprob axis: from 0 down in four steps of the first of these that reach the lowest value.
const LOGPROB_STEPS = [3, 5, 10, 20, 50, 100];
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "4 2", "1 2"];

class Trajectory {
  constructor(lens) {
    this.lens = lens;
    this.heading = element("h3");
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "trajectory" });
    this.numbers = element("table");
    const details = element("details", {}, element("summary", {}, "The same in numbers"), element("div", { class: "scroll" }, this.numbers));
    this.element = element("section", { class: "trajectories", "aria-label": "Pinned tokens over layers" }, this.heading, this.picture, details);
  }

  draw(state) {
    const { lens } = this;
    const column = lens.positions.indexOf(state.position);
    const known = column >= 0 && lens.taps.has(state.tap);
    this.element.hidden = !known || state.pins.length === 0;
    if (this.element.hidden) return;
    const layers = lens.taps.get(state.tap).layers;
    const lines = state.pins.map((id) => {
      const token = lens.token(id);
      return layers.map((layer) => (token < 0 ? null : lens.find(state.tap, layer, column, token)));
    });
    const axis = this.#axis(state, lines.flat().filter(Boolean));
    const gapped = lines.flat().some((found) => axis.of(found) === null);
    const gaps = gapped ? `; gaps in a line: its token is not in the top ${lens.taps.get(state.tap).k} there` : "";
    this.heading.replaceChildren(`Pinned tokens: ${axis.name} over layers of ${state.tap}, position ${state.position}${gaps}`);
    const x = (number) => LEFT + ((WIDTH - LEFT - RIGHT) * (number + 0.5)) / layers.length;
    this.picture.setAttribute("aria-label", `${axis.name} of ${state.pins.length} tokens over ${layers.length} layers; the numbers are below`);
    this.picture.replaceChildren(
      ...axis.ticks.flatMap(([value, text]) => this.#tick(axis.y(value), text)),
      ...this.#layerNames(layers, x),
      ...lines.flatMap((line, number) => this.#line(line.map((found) => axis.of(found)), number, x, axis)),
    );
    this.#table(state, layers, lines, axis);
  }

  // Wide enough for every value that is known: those of tracked tokens are, at any rank.
  #axis(state, known) {
    if (state.stat === "prob") {
      return { name: "probability", ...this.#linear([0, 0.25, 0.5, 0.75, 1]), of: (found) => found && Math.exp(found.logprob), beyond: "" };
    }
    if (state.stat === "logprob") {
      const lowest = Math.min(...known.map((found) => found.logprob), 0);
      const step = LOGPROB_STEPS.find((one) => lowest >= -4 * one) ?? Math.ceil(-lowest / 4);
      const ticks = [-4, -3, -2, -1, 0].map((times) => times * step || 0);
      return { name: "logprob", ...this.#linear(ticks), of: (found) => found && found.logprob, beyond: "" };
    }
    return this.#ranks(this.lens.taps.get(state.tap).k, Math.max(...known.map((found) => found.rank), 1));
  }

  #linear(values) {
    const [least, most] = [values[0], values[values.length - 1]];
    const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (most - value)) / (most - least);
    return { y, ticks: values.map((value) => [value, String(value)]) };
  }

  // As far as the k best, with a last line for what lies beyond; further where a rank beyond is known, and then without that line.
  #ranks(k, highest) {
    const powers = Math.ceil(Math.log10(highest));
    const far = highest > k + 1;
    const last = far ? 10 ** powers : k + 1;
    const ticks = far ? [...Array(powers + 1).keys()].map((power) => [10 ** power, (10 ** power).toLocaleString("en")]) : this.lens.scales.rank.ticks;
    const y = (rank) => TOP + ((HEIGHT - TOP - BOTTOM) * Math.log(rank)) / Math.log(last);
    return { name: "rank", y, of: (found) => (found ? found.rank : far ? null : k + 1), ticks, beyond: `>${k}` };
  }

  #tick(y, text) {
    return [
      svg("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text),
    ];
  }

  #layerNames(layers, x) {
    const step = Math.ceil(layers.length / 24);
    const last = layers.length - 1;
    const named = layers.flatMap((layer, number) =>
      (last - number) % step ? [] : [svg("text", { x: x(number), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(layer))],
    );
    return [...named, svg("text", { x: LEFT, y: HEIGHT - 3, "text-anchor": "start" }, "layer")];
  }

  #line(values, number, x, axis) {
    const points = values.map((value, at) => (value === null ? null : [x(at).toFixed(1), axis.y(value).toFixed(1)]));
    const path = points.map((point, at) => (point ? `${at && points[at - 1] ? "L" : "M"}${point}` : "")).join("");
    const style = { class: `pin-${number % DASHES.length}` };
    const dots = points.filter(Boolean).map(([cx, cy]) => svg("circle", { ...style, cx, cy, r: 2.5 }));
    return [svg("path", { ...style, d: path || "M0,0", "stroke-dasharray": DASHES[number % DASHES.length] || "none" }), ...dots];
  }

  #table(state, layers, lines, axis) {
    const names = state.pins.map((id) => this.#name(id));
    const row = (layer, at) =>
      element("tr", {}, element("th", { scope: "row" }, String(layer)), ...lines.map((line) => element("td", {}, this.#number(line[at], axis))));
    this.numbers.replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "layer"), ...names.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...layers.map(row)),
    );
  }

  #number(found, axis) {
    if (!found) return axis.beyond || "–";
    return axis.name === "probability" ? percent(found.logprob) : rounded(axis.of(found));
  }

  #name(id) {
    const token = this.lens.token(id);
    return token < 0 ? `id ${id}` : shown(this.lens.labels[token]);
  }
}
