// What the lens sees at one place: the k best with bars, and the place's statistics.

const STAT_NAMES = {
  entropy: "entropy, nats",
  kl: "KL to the final prediction, nats",
  next_logprob: "logprob of the next token",
  next_rank: "rank of the next token",
  best_logprob: "logprob of the final prediction",
  next_attribution: "adds to the logit of the next token",
  best_attribution: "adds to the logit of the final prediction",
  attribution_error: "sum of the writes is off by, in logits",
};

class Detail {
  // pin(id) when a token is chosen.
  constructor(lens, pin) {
    this.lens = lens;
    this.heading = element("h3");
    this.list = element("ol", { class: "best" });
    this.facts = element("dl");
    this.element = element("section", { class: "detail", "aria-label": "Best tokens" }, this.heading, this.list, this.facts);
    this.list.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button) pin(Number(button.dataset.id));
    });
  }

  draw(tap, layer, position) {
    const { lens } = this;
    const column = lens.positions.indexOf(position);
    if (column < 0 || !lens.has(tap, layer)) {
      this.heading.replaceChildren(`${tap} of layer ${layer} at position ${position}: not in this record`);
      this.list.replaceChildren();
      this.facts.replaceChildren();
      return;
    }
    this.heading.replaceChildren(`layer ${layer} ${tap}, position ${position} `, shown(lens.labels[lens.read[column]]));
    const keep = this.list.contains(document.activeElement) ? [...this.list.children].indexOf(document.activeElement.parentElement) : -1;
    this.list.replaceChildren(...lens.best(tap, layer, column).map((one) => this.#row(one)));
    if (keep >= 0) this.list.children[keep].firstElementChild.focus();
    const final = lens.final(column);
    const rank = (lens.isBest(column) ? lens.stat("best_rank", tap, layer, column) : null) ?? lens.find(tap, layer, column, final)?.rank;
    const facts = [["rank of the final prediction", [rank ? rounded(rank) : `over ${lens.taps.get(tap).k}`, " ", shown(lens.labels[final])]]];
    for (const [stat, name] of Object.entries(STAT_NAMES)) {
      const value = lens.stat(stat, tap, layer, column);
      // what the model itself puts first may be another token than the last stored layer does
      const own = stat.startsWith("best_") && !lens.isBest(column);
      if (value !== null) facts.push([own ? name.replace("the final prediction", "the model's own top token") : name, [rounded(value)]]);
    }
    this.facts.replaceChildren(
      ...facts.flatMap(([name, parts]) => [element("dt", {}, name), element("dd", {}, ...parts)]),
    );
  }

  #row({ token, logprob }) {
    const id = this.lens.ids[token];
    const label = this.lens.labels[token];
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${(Math.exp(logprob) * 100).toFixed(2)}%`;
    const button = element(
      "button",
      { type: "button", "data-id": id, title: `pin token ${id}`, "aria-label": `pin ${label}, ${percent(logprob)}` },
      shown(label),
      element("span", { class: "share" }, percent(logprob)),
      bar,
    );
    return element("li", {}, button);
  }
}
