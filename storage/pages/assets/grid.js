// The grid: layers from the bottom up, positions from left to right, in each cell the token that the lens puts first.

const COLUMNS = 100; // positions shown at a time

class Grid {
  // events: choose(layer, position) when a cell gets the focus, look(layer, position) while the mouse is on one, pin(id).
  constructor(lens, events) {
    this.lens = lens;
    this.events = events;
    this.cells = new Map();
    this.table = element("table", { role: "grid", class: "grid", "aria-label": "Best token by layer and position" });
    this.caption = element("p", { class: "about" });
    this.element = element("div", {}, element("div", { class: "scroll" }, this.table), this.caption);
    this.table.addEventListener("focusin", ({ target }) => this.#tell(target, events.choose));
    this.table.addEventListener("mouseover", ({ target }) => this.#tell(target, events.look));
    this.table.addEventListener("mouseleave", () => events.look(null));
    this.table.addEventListener("keydown", (event) => this.#key(event));
  }

  #tell(target, event) {
    const place = this.#placeOf(target);
    if (place) event(place.layer, place.position);
  }

  #placeOf(target) {
    const cell = target.closest("td[data-layer]");
    return cell && { layer: Number(cell.dataset.layer), position: Number(cell.dataset.position) };
  }

  // The columns shown: those from state.first on.
  columns(state) {
    const from = Math.max(0, this.lens.positions.findIndex((position) => position >= state.first));
    const count = Math.min(COLUMNS, this.lens.positions.length - from);
    return Array.from({ length: count }, (_, number) => from + number);
  }

  draw(state, scale) {
    const { lens } = this;
    const columns = this.columns(state);
    this.layers = lens.taps.has(state.tap) ? [...lens.taps.get(state.tap).layers].reverse() : [];
    this.positions = columns.map((column) => lens.positions[column]);
    this.cells.clear();
    this.grey = false; // until a cell has no value
    const rows = this.layers.map((layer) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, `layer ${layer}`),
        ...columns.map((column) => this.#cell(state, scale, layer, column)),
      ),
    );
    const next = columns.map((column) => {
      const token = lens.next[column];
      const hit = token >= 0 && lens.final(column) === token;
      return element("td", hit ? { class: "hit" } : {}, ...(token < 0 ? [] : [shown(lens.labels[token])]), hit ? " ✓" : "");
    });
    const read = columns.map((column) => element("td", {}, shown(lens.labels[lens.read[column]])));
    const numbers = this.positions.map((position) =>
      element("th", { scope: "col", class: lens.wrote(position) && "generated" }, String(position)),
    );
    const line = (name, cells) => element("tr", {}, element("th", { scope: "row" }, name), ...cells);
    this.caption.textContent = this.#caption(state);
    this.table.replaceChildren(
      element("thead", {}, line("position", numbers), line("next token", next)),
      element("tbody", {}, ...rows),
      element("tfoot", {}, line("token read", read)),
    );
    this.mark(state);
  }

  #caption(state) {
    const { lens } = this;
    const grey = state.stat === "kl" ? "KL not stored" : `not in the stored top ${lens.taps.get(state.tap)?.k}`;
    return (
      `Cells: top token of ${state.tap}, last layer at the top. Below: the token read; above: the token that comes next, with ✓ ` +
      `where layer ${lens.final_layer} (${lens.final_tap}) predicts it.` +
      (this.grey ? ` Grey: ${grey}.` : "") +
      (this.positions.some((position) => lens.wrote(position)) ? " Underlined: positions of generated tokens." : "")
    );
  }

  #cell(state, scale, layer, column) {
    const { lens } = this;
    const position = lens.positions[column];
    const { token, logprob } = lens.top(state.tap, layer, column);
    const fixed = state.token === null ? null : lens.token(state.token);
    const value = lens.value(state.stat, state.tap, layer, column, fixed);
    this.grey ||= value === null;
    const name = `layer ${layer}, position ${position}: ${lens.labels[token]}, ${percent(logprob)}`;
    const cell = element(
      "td",
      { tabindex: "-1", "data-layer": layer, "data-position": position, "aria-label": name },
      shown(lens.labels[token]),
    );
    const paint = colour(scale, value);
    cell.style.backgroundColor = paint;
    cell.style.color = ink(paint);
    this.cells.set(`${layer},${position}`, cell);
    return cell;
  }

  // Show which place is chosen; the only cell that Tab reaches.
  mark(state) {
    if (this.marked) {
      this.marked.tabIndex = -1;
      this.marked.removeAttribute("aria-selected");
    }
    this.marked = this.cells.get(`${state.layer},${state.position}`);
    const reached = this.marked ?? this.cells.values().next().value;
    if (reached) reached.tabIndex = 0;
    if (this.marked) this.marked.setAttribute("aria-selected", "true");
  }

  #key(event) {
    const place = this.#placeOf(event.target);
    if (!place || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      this.events.pin(place.layer, place.position);
      event.preventDefault();
      return;
    }
    const [row, column] = [this.layers.indexOf(place.layer), this.positions.indexOf(place.position)];
    const [lastRow, lastColumn] = [this.layers.length - 1, this.positions.length - 1];
    const target = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      PageUp: [row - 5, column],
      PageDown: [row + 5, column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? lastRow : row, lastColumn],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    const layer = this.layers[Math.min(Math.max(target[0], 0), lastRow)];
    const position = this.positions[Math.min(Math.max(target[1], 0), lastColumn)];
    this.cells.get(`${layer},${position}`).focus();
  }
}
