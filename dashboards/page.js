// What the report does in the browser: draw the charts, keep them fitting, sort the table.
"use strict";
// Each figure carries two layouts in its meta; a narrow chart gets the second.
for (const chart of document.querySelectorAll(".chart")) {
  const figure = JSON.parse(document.getElementById(chart.id + "-data").textContent);
  const mode = () => (chart.clientWidth < 640 ? "narrow" : "wide");
  let drawn = null;
  const arrange = () => {
    const [now, width] = [mode(), chart.clientWidth];
    if (now === drawn && width === chart.layout.width) return;
    const layout = now === drawn ? {} : figure.layout.meta[now];
    drawn = now;
    if (layout.height) chart.style.minHeight = layout.height + "px";
    Plotly.relayout(chart, { ...layout, width });
  };
  const config = JSON.parse(chart.dataset.config);
  Plotly.newPlot(chart, figure.data, figure.layout, config).then(() => {
    arrange();
    new ResizeObserver(arrange).observe(chart);
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const missing = (row) => row.cells[column].textContent.startsWith("\u2013");
    const compare = (a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const [x, y] = [key(a), key(b)];
      const [p, q] = [Number(x), Number(y)];
      return sign * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
