// A record that is asked by place: a tap, a layer and a column, which is a position's number among those of the page.

class Lens {
  static async open(data) {
    const lens = new Lens();
    Object.assign(lens, data);
    lens.ids = await unpacked(data.ids);
    lens.labels = await unpackedTexts(data.labels);
    lens.taps = new Map();
    for (const tap of data.taps) {
      const stats = {};
      for (const [name, values] of Object.entries(tap.stats)) stats[name] = await unpacked(values);
      const [tokens, logprobs] = [await unpacked(tap.tokens), await unpackedLogprobs(tap.logprobs)];
      lens.taps.set(tap.name, { layers: tap.layers, tokens, logprobs, stats, k: tokens.shape[2] });
    }
    return lens;
  }

  // The number of a token id in this page, or -1.
  token(id) {
    let [low, high] = [0, this.ids.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ids[middle] < id) low = middle + 1;
      else high = middle;
    }
    return this.ids[low] === id ? low : -1;
  }

  // Whether the token at a position was generated, and not given.
  wrote(position) {
    return this.generated !== null && position >= this.generated;
  }

  has(tap, layer) {
    return this.taps.has(tap) && this.taps.get(tap).layers.includes(layer);
  }

  // The place's number in a statistic [L, P].
  #place(tap, layer, column) {
    return this.taps.get(tap).layers.indexOf(layer) * this.positions.length + column;
  }

  // The k best: [{token, logprob}].
  best(tap, layer, column) {
    const { tokens, logprobs, k } = this.taps.get(tap);
    const first = this.#place(tap, layer, column) * k;
    return Array.from({ length: k }, (_, rank) => ({ token: tokens[first + rank], logprob: logprobs[first + rank] }));
  }

  top(tap, layer, column) {
    const { tokens, logprobs, k } = this.taps.get(tap);
    const first = this.#place(tap, layer, column) * k;
    return { token: tokens[first], logprob: logprobs[first] };
  }

  // What the last layer predicts.
  final(column) {
    return this.top(this.final_tap, this.final_layer, column).token;
  }

  // Whether the statistics of the "best" token, which the model's own last layer puts first, are of the final prediction.
  isBest(column) {
    return this.stat("best_rank", this.final_tap, this.final_layer, column) === 1;
  }

  // Rank and logprob of a token as they are stored, whatever they are: of tracked tokens and of the final prediction; or null.
  #stored(tap, layer, column, token) {
    const { stats } = this.taps.get(tap);
    const place = this.#place(tap, layer, column);
    const tracked = this.tracked.indexOf(token);
    if (tracked >= 0 && stats.tracked_rank && stats.tracked_logprob) {
      const at = place * this.tracked.length + tracked;
      return { rank: stats.tracked_rank[at], logprob: stats.tracked_logprob[at] };
    }
    const best = stats.best_rank && stats.best_logprob && token === this.final(column) && this.isBest(column);
    return best ? { rank: stats.best_rank[place], logprob: stats.best_logprob[place] } : null;
  }

  // Whether the rank of a token, or with null of the final prediction, is stored at every place of a tap.
  exact(tap, token) {
    const [layer] = this.taps.get(tap)?.layers ?? [];
    return layer !== undefined && this.positions.every((_, column) => this.#stored(tap, layer, column, token ?? this.final(column)));
  }

  // Rank and logprob of a token, as stored or as far as it is among the k best; or null.
  find(tap, layer, column, token) {
    const stored = this.#stored(tap, layer, column, token);
    if (stored) return stored;
    const best = this.best(tap, layer, column);
    const at = best.findIndex((one) => one.token === token);
    return at < 0 ? null : { rank: at + 1, logprob: best[at].logprob };
  }

  // A stored statistic, or null where it has no value.
  stat(name, tap, layer, column) {
    const values = this.taps.get(tap).stats[name];
    const value = values ? values[this.#place(tap, layer, column)] : NaN;
    return Number.isNaN(value) || (name.endsWith("rank") && value === 0) ? null : value;
  }

  // What colours a cell: a number, or null. Rank, probability and logprob are of a token, or with null of the final one (rank)
  // and of the best one.
  value(name, tap, layer, column, token) {
    if (name === "entropy" || name === "kl") return this.stat(name, tap, layer, column);
    if (name === "rank") {
      const found = this.find(tap, layer, column, token ?? this.final(column));
      return found ? found.rank : this.taps.get(tap).k + 1;
    }
    const found = token === null ? this.top(tap, layer, column) : this.find(tap, layer, column, token);
    if (!found) return null;
    return name === "prob" ? Math.exp(found.logprob) : found.logprob;
  }

  // How many places of a tap have each token among their k best: [V].
  counts(tap) {
    const counts = new Uint32Array(this.ids.length);
    for (const token of this.taps.get(tap)?.tokens ?? []) counts[token]++;
    return counts;
  }
}
