// Asks a run that is going how far it is, until it is complete; then the page is read anew.

const PAUSE = 2000; // milliseconds
const section = document.getElementById("progress");

function show(counts) {
  const failed = Object.values(counts.failures).reduce((sum, count) => sum + count, 0);
  section.querySelector("progress").value = counts.records + failed;
  const shown = [["records", counts.records, "record"], ["failed", failed, "failure"], ["tokens", counts.tokens, "token"]];
  for (const [id, value, noun] of shown) {
    document.getElementById(id).textContent = `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
  }
}

async function ask() {
  const answer = await fetch(section.dataset.address).catch(() => null); // whoever serves it may be away for a while
  const counts = answer?.ok ? await answer.json() : null;
  if (counts) show(counts);
  if (counts?.complete) location.reload();
  else setTimeout(ask, PAUSE);
}

if (!("complete" in section.dataset)) setTimeout(ask, PAUSE);
