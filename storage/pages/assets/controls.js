// The form above the grids: tap, statistic, token, positions, pins and the search for a token.

const MOST_FOUND = 20;

class Controls {
  // change(part of the state) when something is chosen.
  constructor(lenses, change) {
    this.lenses = lenses;
    this.change = change;
    this.at = (id) => document.getElementById(id);
    this.at("tap").append(...commonTaps(lenses).map((tap) => element("option", { value: tap }, tap)));
    this.at("stat").append(...stats(lenses).map((stat) => element("option", { value: stat }, stat)));
    this.at("tap").addEventListener("change", ({ target }) => change({ tap: target.value }));
    this.at("stat").addEventListener("change", ({ target }) => change({ stat: target.value }));
    this.at("of").addEventListener("change", ({ target }) => change({ token: target.value ? Number(target.value) : null }));
    this.at("first").addEventListener("change", ({ target }) => change({ first: whole(target.value) ?? 0 }));
    this.at("earlier").addEventListener("click", () => this.#turn(-1));
    this.at("later").addEventListener("click", () => this.#turn(1));
    this.at("search").addEventListener("input", () => this.#search());
    this.at("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  #turn(pages) {
    const { positions } = this.lenses[0];
    const at = Math.max(0, positions.findIndex((position) => position >= this.state.first));
    this.change({ first: positions[Math.min(Math.max(0, at + pages * COLUMNS), positions.length - 1)] });
  }

  #label(id) {
    for (const lens of this.lenses) {
      const token = lens.token(id);
      if (token >= 0) return lens.labels[token];
    }
    return `‹id ${id}›`;
  }

  draw(state, scale) {
    this.state = state;
    this.at("tap").value = state.tap;
    this.at("stat").value = state.stat;
    const [lens] = this.lenses;
    this.#tokens(state);
    this.#positions(state, lens.positions);
    this.#pins(state);
    this.#legend(state, scale);
    if (this.at("search").value) this.#search();
  }

  #tokens(state) {
    const follows = ["rank", "prob", "logprob"].includes(state.stat);
    const known = state.token === null || state.pins.includes(state.token) ? state.pins : [state.token, ...state.pins];
    this.at("of").disabled = !follows;
    this.at("of").replaceChildren(
      element("option", { value: "" }, follows ? this.#usual(state) : "–"),
      ...known.map((id) => element("option", { value: id }, this.#label(id))),
    );
    this.at("of").value = follows && state.token !== null ? String(state.token) : "";
  }

  // What a statistic is of where no token is chosen.
  #usual({ stat }) {
    return stat === "rank" ? "the final prediction" : "the top token";
  }

  #positions(state, positions) {
    const at = Math.max(0, positions.findIndex((position) => position >= state.first));
    const end = Math.min(at + COLUMNS, positions.length);
    this.at("first").value = positions[at];
    this.at("range").textContent = `${positions[at]} to ${positions[end - 1]}, ${end - at} of ${positions.length}`;
    this.at("earlier").disabled = at === 0;
    this.at("later").disabled = end === positions.length;
  }

  #pins(state) {
    const remove = (id) => this.change({ pins: state.pins.filter((pin) => pin !== id), token: state.token === id ? null : state.token });
    this.at("pins").replaceChildren(
      ...state.pins.map((id, number) => {
        const label = this.#label(id);
        const button = element("button", { type: "button", "aria-label": `unpin ${label}` }, "×");
        button.addEventListener("click", () => {
          remove(id);
          (this.at("pins").querySelector("button") ?? this.at("search")).focus();
        });
        const line = svg("svg", { viewBox: "0 0 28 10", class: "key", "aria-hidden": "true" });
        const dashes = DASHES[number % DASHES.length] || "none";
        line.append(svg("path", { class: `pin-${number % DASHES.length}`, d: "M1,5L27,5", "stroke-dasharray": dashes }));
        return element("li", {}, line, shown(label), button);
      }),
    );
  }

  #legend(state, scale) {
    const gradient = this.at("gradient");
    gradient.style.background = `linear-gradient(to right, ${scale.colours.join(", ")})`;
    this.at("ticks").replaceChildren(
      ...scale.ticks.map(([value, text]) => {
        const tick = element("span", {}, text);
        tick.style.left = `${(share(scale, value) * 100).toFixed(1)}%`;
        return tick;
      }),
    );
    const of = state.token === null ? this.#usual(state) : this.#label(state.token);
    const words = {
      rank: ["rank of ", shown(of), ", log scale"],
      prob: ["probability of ", shown(of)],
      logprob: ["logprob of ", shown(of), ", nats"],
      entropy: ["entropy, nats"],
      kl: ["KL to the final prediction, nats, log scale"],
    };
    this.at("scale-name").replaceChildren(...words[state.stat]);
  }

  // Tokens whose label holds what is looked for, those in most places first.
  #search() {
    const wanted = this.at("search").value;
    const places = new Map();
    if (wanted) {
      for (const lens of this.lenses) {
        const counts = lens.counts(this.state.tap);
        lens.labels.forEach((label, token) => {
          if (!label.includes(wanted) || !counts[token]) return;
          const id = lens.ids[token];
          places.set(id, { label, count: counts[token] + (places.get(id)?.count ?? 0) });
        });
      }
    }
    const found = [...places].sort((one, other) => other[1].count - one[1].count || one[0] - other[0]);
    const most = found.length > MOST_FOUND ? `; the ${MOST_FOUND} in most places` : "";
    this.at("found-count").textContent = wanted ? `${found.length} tokens in the top k of ${this.state.tap}${most}` : "";
    this.at("found").replaceChildren(...found.slice(0, MOST_FOUND).map(([id, one]) => this.#found(id, one)));
  }

  #found(id, { label, count }) {
    const button = element("button", { type: "button", "aria-label": `pin ${label}, in ${count} places` }, shown(label), ` ${count}`);
    button.addEventListener("click", () => {
      const { pins, stat } = this.state;
      this.change({ pins: pins.includes(id) ? pins : [...pins, id], token: id, stat: ["entropy", "kl"].includes(stat) ? "rank" : stat });
    });
    return element("li", {}, button);
  }
}
