"use strict";
// Tables can be sorted by each header, and filtered by a text and by columns of few different texts.

const texts = new Intl.Collator(undefined, { numeric: true });

function order(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : texts.compare(a, b);
}

function key(row, column) {
  const cell = row.cells[column];
  return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row, column), row]);
  const known = rows.filter(([value]) => value !== "").sort(([a], [b]) => (descending ? order(b, a) : order(a, b)));
  const unknown = rows.filter(([value]) => value === ""); // they come last, whichever way
  body.append(...[...known, ...unknown].map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text, control);
  return label;
}

function chooser(rows, column) {
  const control = document.createElement("select");
  const found = [...new Set(rows.map((row) => row.cells[column].textContent))].sort(texts.compare);
  control.append(new Option("all", ""));
  for (const text of found) if (text !== "") control.append(new Option(text, text));
  return control;
}

function equip(table) {
  table.classList.remove("plain");
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, column, head.getAttribute("aria-sort") === "ascending"));
  });

  if (rows.length < 2) return;
  const search = document.createElement("input");
  search.type = "search";
  const choices = heads
    .map((head, column) => ({ head, column }))
    .filter(({ head }) => "choice" in head.dataset)
    .map(({ head, column }) => ({ name: head.textContent, column, control: chooser(rows, column) }))
    .filter(({ control }) => control.options.length > 2);
  const count = document.createElement("output");
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(labelled("Filter", search), ...choices.map(({ name, control }) => labelled(name, control)), count);
  table.before(tools);

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden =
        !words.every((word) => text.includes(word)) ||
        choices.some(({ column, control }) => control.value && row.cells[column].textContent !== control.value);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length}`;
  }

  tools.addEventListener("input", filter);
  filter();
  // A mark of a plot leads to its row, also where that was filtered out.
  window.addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row === null || row.closest("table") !== table || !row.hidden) return;
    search.value = "";
    for (const { control } of choices) control.value = "";
    filter();
    row.scrollIntoView();
  });
}

document.querySelectorAll("table").forEach(equip);
