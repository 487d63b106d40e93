// Puts the page together: one record, or several side by side that are shown alike.

// A record with its grid, its best tokens and its trajectories.
class Pane {
  constructor(lens, events) {
    this.lens = lens;
    this.grid = new Grid(lens, {
      choose: events.choose,
      look: (layer, position) => this.look(layer, position),
      pin: (layer, position) => events.pin(lens.ids[lens.top(this.state.tap, layer, lens.positions.indexOf(position)).token]),
    });
    this.detail = new Detail(lens, events.pin);
    this.trajectory = new Trajectory(lens);
    const about = [];
    if (lens.generated !== null) about.push(`generated: ${lens.generated} to ${lens.length - 1}`);
    if (lens.truncated_from !== null) about.push(`cut from ${lens.truncated_from} tokens`);
    this.element = element(
      "article",
      { class: "pane" },
      element("h2", {}, `${lens.model} · run ${lens.run}`),
      ...(about.length ? [element("p", { class: "about" }, about.join("; "))] : []),
      element("details", {}, element("summary", {}, `Text, ${lens.length} tokens`), element("p", { class: "text", dir: "auto" }, lens.text)),
      element("div", { class: "body" }, this.grid.element, element("div", {}, this.detail.element, this.trajectory.element)),
    );
  }

  draw(state, changed, scale) {
    this.state = state;
    if (changed.some((name) => ["tap", "stat", "token", "first"].includes(name))) this.grid.draw(state, scale);
    else this.grid.mark(state);
    this.detail.draw(state.tap, state.layer, state.position);
    this.trajectory.draw(state);
  }

  look(layer, position) {
    this.detail.draw(this.state.tap, layer ?? this.state.layer, position ?? this.state.position);
  }
}

async function start() {
  const data = [...document.querySelectorAll("script.lens")].map((script) => JSON.parse(script.textContent));
  const lenses = await Promise.all(data.map(Lens.open));
  let state = stateFrom(location.hash, lenses);
  const change = (part) => {
    const changed = Object.keys(part).filter((name) => part[name] !== state[name]);
    state = { ...state, ...part };
    draw(changed);
    keep(state);
  };
  const pin = (id) => change({ pins: state.pins.includes(id) ? state.pins : [...state.pins, id] });
  const choose = (layer, position) => change({ layer, position });
  const controls = new Controls(lenses, change);
  const panes = lenses.map((lens) => new Pane(lens, { choose, pin }));
  const draw = (changed) => {
    const scale = scaleOf(lenses, state);
    controls.draw(state, scale);
    for (const pane of panes) pane.draw(state, changed, scale);
  };
  document.getElementById("panes").replaceChildren(...panes.map((pane) => pane.element));
  draw(["tap"]);
  for (const pane of panes) pane.grid.marked?.scrollIntoView({ block: "nearest", inline: "end" });
  window.addEventListener("hashchange", () => {
    state = stateFrom(location.hash, lenses);
    draw(["tap"]);
  });
  document.documentElement.dataset.ready = "";
}

start().catch((error) => {
  document.getElementById("panes").replaceChildren(element("p", { role: "alert" }, `This page cannot be shown: ${error.message}`));
  throw error;
});
