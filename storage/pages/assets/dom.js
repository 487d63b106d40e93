// Elements are made here only, and text goes into them as text.

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// A token's label, kept in its own direction and apart from the text around it.
function shown(label) {
  return element("bdi", { class: "token" }, label);
}

function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return value < 0.001 ? "<0.001 %" : `${value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

function rounded(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(2).replace(/^-(0\.00)$/, "$1");
}
