
// CSV as Python's csv module reads it. What a spreadsheet would compute gets an apostrophe before it, which
// vidcls/data/decisions.py takes away again.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
const csvCell = text => `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
const writeCsv = rows => rows.map(cells => `${cells.map(csvCell).join(",")}\n`).join("");

function readCsv(text) { // rows as [line, cells]
  const cell = /("[^"]*(?:""[^"]*)*"|[^",\r\n]*)(,|\r\n|\n|\r|$)/y, rows = [];
  let cells = [], line = 1, next = 1;
  for (text = text.replace(/^\ufeff/, ""); cell.lastIndex < text.length || cells.length;) {
    const found = cell.exec(text);
    if (!found) throw Error(`line ${next} is no CSV`);
    const [, raw, end] = found, value = raw[0] === '"' ? raw.slice(1, -1).replaceAll('""', '"') : raw;
    cells.push(FORMULA.test(value) && value[0] === "'" ? value.slice(1) : value);
    next += raw.split("\n").length - 1 + (end !== "," && end !== "");
    if (end === ",") continue;
    if (cells.length > 1 || cells[0]) rows.push([line, cells]);
    [cells, line] = [[], next];
    if (end === "") break;
  }
  return rows;
}
