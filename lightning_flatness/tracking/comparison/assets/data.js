// Names and numbers of the page; numbers are decoded when they are first needed.
const page = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const decoded = new Map();

function numbers(place) {
  if (!decoded.has(place)) {
    const bytes = Uint8Array.from(atob(page.arrays[place]), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    decoded.set(place, Float64Array.from({ length: bytes.length / 8 }, (_, at) => view.getFloat64(8 * at, true)));
  }
  return decoded.get(place);
}

// Plotly reads tags and entities in every text.
function literal(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function listed(names) {
  return names.length > 4 ? `${names.slice(0, 4).join(", ")} and ${names.length - 4} more` : names.join(", ");
}
