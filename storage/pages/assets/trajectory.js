// Pinned tokens over the layers of a tap at one position, by rank, probability or logprob.

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 220, 48, 12, 10, 34];
const LEAST_LOGPROB = -12;
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
    const axis = this.#axis(state);
    this.heading.replaceChildren(`Pinned tokens: ${axis.name} over layers of ${state.tap}, position ${state.position}`);
    const lines = state.pins.map((id) => {
      const token = lens.token(id);
      return layers.map((layer) => (token < 0 ? null : lens.find(state.tap, layer, column, token)));
    });
    const x = (number) => LEFT + ((WIDTH - LEFT - RIGHT) * (number + 0.5)) / layers.length;
    this.picture.setAttribute("aria-label", `${axis.name} of ${state.pins.length} tokens over ${layers.length} layers; in numbers below`);
    this.picture.replaceChildren(
      ...axis.ticks.flatMap(([value, text]) => this.#tick(axis.y(value), text)),
      ...this.#layerNames(layers, x),
      ...lines.flatMap((line, number) => this.#line(line.map((found) => axis.of(found)), number, x, axis)),
    );
    this.#table(state, layers, lines, axis);
  }

  #axis(state) {
    const span = HEIGHT - TOP - BOTTOM;
    if (state.stat === "prob" || state.stat === "logprob") {
      const least = state.stat === "prob" ? 0 : LEAST_LOGPROB;
      const most = state.stat === "prob" ? 1 : 0;
      const y = (value) => TOP + (span * (most - Math.max(value, least))) / (most - least);
      const ticks = state.stat === "prob" ? [0, 0.25, 0.5, 0.75, 1] : [-12, -9, -6, -3, 0];
      const of = (found) => found && (state.stat === "prob" ? Math.exp(found.logprob) : found.logprob);
      return { name: state.stat === "prob" ? "probability" : "logprob", y, of, ticks: ticks.map((tick) => [tick, String(tick)]), beyond: "" };
    }
    const { k } = this.lens.taps.get(state.tap);
    const { ticks } = this.lens.scales.rank;
    const y = (rank) => TOP + (span * Math.log(Math.min(rank, k + 1))) / Math.log(k + 1);
    return { name: "rank", y, of: (found) => (found ? found.rank : k + 1), ticks, beyond: `>${k}` };
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
    const value = axis.of(found);
    return axis.name === "probability" ? percent(found.logprob) : rounded(value);
  }

  #name(id) {
    const token = this.lens.token(id);
    return token < 0 ? `id ${id}` : shown(this.lens.labels[token]);
  }
}
