// What is shown, kept in the address after the #: a copied address shows the same.

const STATS = ["rank", "prob", "logprob", "entropy", "kl"];

function whole(text) {
  return text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

// The state that an address asks for, as far as the records have it.
function stateFrom(hash, lenses) {
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  const [lens] = lenses;
  const tap = lens.taps.has(asked.get("tap")) ? asked.get("tap") : [...lens.taps.keys()].at(-1);
  const layers = lens.taps.get(tap).layers;
  const layer = whole(asked.get("layer"));
  const position = whole(asked.get("position"));
  const chosen = lens.positions.includes(position) ? position : lens.positions.at(-1);
  const column = lens.positions.indexOf(chosen);
  const pins = asked.has("pin") ? asked.get("pin").split(",").map(whole).filter((id) => id !== null) : null;
  return {
    tap,
    stat: stats(lenses).includes(asked.get("stat")) ? asked.get("stat") : "rank",
    token: whole(asked.get("of")),
    first: whole(asked.get("from")) ?? lens.positions[Math.floor(column / COLUMNS) * COLUMNS],
    layer: layers.includes(layer) ? layer : layers.at(-1),
    position: chosen,
    pins: pins ?? [lens.ids[lens.final(column)]],
  };
}

// The statistics that every record has.
function stats(lenses) {
  const has = (lens) => [...lens.taps.values()].every((tap) => tap.stats.kl);
  return STATS.filter((stat) => stat !== "kl" || lenses.every(has));
}

function keep(state) {
  const written = { tap: state.tap, stat: state.stat, from: state.first, layer: state.layer, position: state.position };
  if (state.token !== null) written.of = state.token;
  written.pin = state.pins.join(",");
  history.replaceState(null, "", `#${new URLSearchParams(written)}`);
}
