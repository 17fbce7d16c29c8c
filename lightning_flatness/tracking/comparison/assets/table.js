// Tables are sorted by the button in the head of a column; cells without a value stay last.
const collator = new Intl.Collator(undefined, { numeric: true });

function compared(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
}

function valueOf(row, column) {
  const text = row.cells[column].dataset.value;
  return text === undefined || text === "" || text === "nan" ? null : text.replace(/^(-?)inf$/, "$1Infinity");
}

function sortTable(table, column, descending) {
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  const known = rows.filter(([value]) => value !== null).sort(([a], [b]) => (descending ? compared(b, a) : compared(a, b)));
  table.tBodies[0].append(...[...known, ...rows.filter(([value]) => value === null)].map(([, row]) => row));
}

function prepareTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const buttons = [...table.querySelectorAll("button.sort")];
    for (const [column, button] of buttons.entries()) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const one of table.querySelectorAll("[aria-sort]")) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortTable(table, column, descending);
      });
    }
  }
}
