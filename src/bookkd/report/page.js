"use strict";
(() => {
  // Tables: the button in a head sorts by its column; what is absent stays last.
  const order = new Intl.Collator(undefined, { numeric: true });

  function valueOf(row, column, number) {
    const value = row.cells[column].dataset.value;
    if (value === "") return null;
    return number ? Number(value) : value;
  }

  function sort(head) {
    const table = head.closest("table");
    const heads = [...head.parentNode.cells];
    const column = heads.indexOf(head);
    const number = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const direction = now === null ? (number ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column, number), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (number ? a - b : order.compare(a, b));
    });
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // Text to copy: where the clipboard is closed to us, it is selected for the reader's own key.
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const text = button.nextElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
    });
  }

  // Charts.
  const views = new Map();

  function rowsOf({ columns, rows }) {
    return rows.map((row) => Object.fromEntries(columns.map((name, place) => [name, row[place]])));
  }

  // Arrow keys walk through the marks of a chart, and what each one says is written below it.
  function walk(plot, event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    const marks = [...plot.querySelectorAll(".role-mark [aria-label]")].filter((mark) => !mark.querySelector("[aria-label]"));
    if (marks.length === 0) return;
    event.preventDefault();
    const before = marks.findIndex((mark) => mark.classList.contains("here"));
    const place = before < 0 ? (step > 0 ? 0 : marks.length - 1) : (before + step + marks.length) % marks.length;
    for (const mark of marks) mark.classList.remove("here");
    marks[place].classList.add("here");
    plot.parentNode.querySelector(".reading").textContent = marks[place].getAttribute("aria-label");
  }

  async function draw(chart) {
    const plot = document.getElementById(`chart-${chart.key}`);
    const datasets = Object.fromEntries(Object.entries(chart.data).map(([name, data]) => [name, rowsOf(data)]));
    const spec = { ...chart.spec, datasets: { ...chart.spec.datasets, ...datasets } };
    const options = { renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } };
    const { view } = await vegaEmbed(plot, spec, options);
    views.set(plot.id, { chart, plot, view });
    plot.querySelector("svg").setAttribute("aria-hidden", "true");
    plot.addEventListener("keydown", (event) => walk(plot, event));
    describe(chart, plot, view);
  }

  function describe(chart, plot, view) {
    const chosen = chart.parameters.length ? view.signal(chart.parameters[0]) : "";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", chart.alt[chosen] ?? "Not measured.");
    plot.classList.toggle("empty", !(chosen in chart.alt));
    plot.parentNode.querySelector(".reading").textContent = "";
  }

  async function choose(select) {
    for (const figure of select.closest("section").querySelectorAll("figure .plot")) {
      const found = views.get(figure.id);
      if (found === undefined || !found.chart.parameters.includes(select.dataset.parameter)) continue;
      await found.view.signal(select.dataset.parameter, select.value).runAsync();
      describe(found.chart, found.plot, found.view);
    }
  }

  async function start() {
    for (const chart of JSON.parse(document.getElementById("data").textContent)) await draw(chart);
    for (const select of document.querySelectorAll("select[data-parameter]")) {
      const shown = [...views.values()].find(
        ({ chart, plot }) => plot.closest("section") === select.closest("section") && chart.parameters.includes(select.dataset.parameter),
      );
      if (shown) select.value = shown.view.signal(select.dataset.parameter);
      select.addEventListener("change", () => choose(select));
    }
    document.documentElement.dataset.ready = "yes";
  }

  start();
})();
