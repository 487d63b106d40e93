// Values to colours, by the scales of the pictures.

const NO_VALUE = "#d0d0d0";

// How a statistic becomes colours, in all records alike: a rank is exact if every one has it at each place, else it is cut where
// the record that keeps the fewest tokens ends.
function scaleOf(lenses, { stat, tap, token }) {
  const exact = stat === "rank" && lenses.every((lens) => lens.exact(tap, token === null ? null : lens.token(token)));
  const [narrowest] = lenses.map((lens) => lens.scales).sort((one, other) => one.rank.high - other.rank.high);
  return narrowest[exact ? "exact_rank" : stat];
}

function share(scale, value) {
  const { low, high, log } = scale;
  const clipped = Math.min(Math.max(value, low), high);
  return log ? Math.log(clipped / low) / Math.log(high / low) : (clipped - low) / (high - low);
}

function colour(scale, value) {
  if (value === null) return NO_VALUE;
  return scale.colours[Math.min(scale.colours.length - 1, Math.floor(share(scale, value) * scale.colours.length))];
}

// Black or white, whichever contrasts more with a colour (relative luminance of WCAG).
function ink(hex) {
  const [red, green, blue] = [1, 3, 5]
    .map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) ** 2 > 0.05 * 1.05 ? "#000000" : "#ffffff";
}
