// What is shown, kept in the address after the #: a copied address shows the same.

const STATS = ["rank", "prob", "logprob", "entropy", "kl"];

function whole(text) {
  return text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

// What all records have of something, or of what the first has if they have nothing in common.
function common(lenses, of) {
  const [first, ...others] = lenses.map(of);
  const sets = others.map((other) => new Set(other));
  const shared = first.filter((one) => sets.every((set) => set.has(one)));
  return shared.length ? shared : first;
}

function commonTaps(lenses) {
  return common(lenses, (lens) => [...lens.taps.keys()]);
}

// The state that an address asks for, as far as the records have it.
function stateFrom(hash, lenses) {
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  const [lens] = lenses;
  const taps = commonTaps(lenses);
  const ofBlocks = taps.filter((name) => !name.startsWith("head_"));
  const tap = taps.includes(asked.get("tap")) ? asked.get("tap") : (ofBlocks.length ? ofBlocks : taps).at(-1);
  const layers = common(lenses, (one) => one.taps.get(tap)?.layers ?? []);
  const positions = common(lenses, (one) => one.positions);
  const layer = whole(asked.get("layer"));
  const position = whole(asked.get("position"));
  const chosen = positions.includes(position) ? position : positions.at(-1);
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

// The statistics that every record has, of some tap: of the others there is no colour.
function stats(lenses) {
  const has = (lens) => [...lens.taps.values()].some((tap) => tap.stats.kl);
  return STATS.filter((stat) => stat !== "kl" || lenses.every(has));
}

// Browsers allow some ten changes of the address a second, so it is written when nothing is chosen any more.
const KEEP_AFTER = 200; // milliseconds
let kept = null;

function keep(state) {
  clearTimeout(kept);
  kept = setTimeout(() => write(state), KEEP_AFTER);
}

function write(state) {
  const written = { tap: state.tap, stat: state.stat, from: state.first, layer: state.layer, position: state.position };
  if (state.token !== null) written.of = state.token;
  written.pin = state.pins.join(",");
  history.replaceState(null, "", `#${new URLSearchParams(written)}`);
}
