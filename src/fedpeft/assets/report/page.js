"use strict";
(() => {
  const root = document.documentElement;
  const font = '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';
  // Colours are the style sheet's variables: a change of theme redraws nothing.
  const config = {
    background: "transparent", font, padding: 2,
    view: { stroke: null },
    axis: {
      labelColor: "var(--soft)", titleColor: "var(--soft)", titleFontWeight: 500, labelFontSize: 11.5, titleFontSize: 12,
      gridColor: "var(--line)", domainColor: "var(--faint)", tickColor: "var(--faint)", titlePadding: 10, labelPadding: 5,
    },
    axisY: { labelLimit: 260, domain: false, ticks: false },
    legend: { labelColor: "var(--ink)", titleColor: "var(--soft)", labelLimit: 0, symbolStrokeWidth: 2.5, symbolSize: 110, labelFontSize: 12 },
    text: { font },
  };

  // The names of the points on the front, each where it covers nothing, or not at all.
  const withNames = (spec) => {
    const find = (marks) => marks.flatMap((mark) => [mark, ...find(mark.marks || [])]);
    const there = ["named_marks", "across_marks"].filter((name) => find(spec.marks).some((mark) => mark.name === name));
    if (!there.includes("named_marks")) return spec;
    spec.marks.push({
      type: "text", from: { data: "named_marks" }, interactive: false,
      encode: { enter: {
        text: { signal: "datum.datum.front ? datum.datum.group : ''" }, fill: { value: "var(--ink)" },
        fontSize: { value: 12 }, font: { value: font },
      } },
      transform: [{ type: "label", size: { signal: "[max(1, width), max(1, height)]" }, offset: [7], padding: 0, avoidMarks: there,
        anchor: ["top-right", "bottom-right", "top-left", "bottom-left", "top", "bottom", "right", "left"] }],
    });
    return spec;
  };

  const views = new Map();
  const draw = async (section) => {
    const specs = JSON.parse(section.querySelector("script.specs").textContent);
    const drawn = [];
    for (const plot of section.querySelectorAll(".plot")) {
      const spec = specs[plot.dataset.figure];
      const { view } = await vegaEmbed(plot, spec, {
        actions: false, renderer: "svg", config,
        patch: (compiled) => withNames({ ...compiled, legends: [] }), // the page has its own beside the figures
      });
      drawn.push({ view, spec, name: plot.dataset.figure });
    }
    views.set(section, drawn);
  };

  const hidden = (section) => [...section.querySelectorAll('.chip[aria-pressed="false"]')].map((chip) => chip.dataset.group);
  const hide = (section) => {
    for (const cell of section.querySelectorAll(".drawn [data-group]")) cell.hidden = hidden(section).includes(cell.dataset.group);
    for (const { view } of views.get(section) || [])
      if (view.getState().signals && "hidden" in view.getState().signals) view.signal("hidden", hidden(section)).runAsync();
  };

  // A picture for a paper: light, with a legend, its colours written out.
  const lightColours = () => {
    const before = root.dataset.theme;
    root.dataset.theme = "light";
    const style = getComputedStyle(root);
    const names = ["page", "card", "ink", "soft", "faint", "line", "heat", ...Array.from({ length: 8 }, (_, k) => `c${k}`)];
    const found = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    if (before === undefined) delete root.dataset.theme; else root.dataset.theme = before;
    return found;
  };
  const save = async (section, name) => {
    const { spec, view } = views.get(section).find((one) => one.name === name);
    const paper = { ...config, background: "#ffffff", padding: 12 };
    const { view: still, finalize } = await vegaEmbed(document.createElement("div"), { ...spec, width: 640 }, {
      actions: false, renderer: "svg", patch: withNames, config: paper,
    });
    for (const signal of ["hidden", "chosen"]) {
      try { still.signal(signal, view.signal(signal)); } catch { /* this figure has no such signal */ }
    }
    const colours = lightColours();
    const svg = (await still.toSVG()).replace(/var\(--(\w+)\)/g, (_, key) => colours[key]);
    finalize();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
    link.download = `${name.replace(/[^\w.-]+/g, "-")}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const sort = (heading) => {
    const row = heading.parentNode, column = [...row.children].indexOf(heading);
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of row.children) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = heading.classList.contains("number"), body = heading.closest("table").tBodies[0];
    const value = (line) => line.children[column].dataset.value;
    const order = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true })) * (down ? -1 : 1);
    const lines = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      return a === "" || b === "" ? (a === "") - (b === "") : order(a, b); // what is not known comes last
    });
    body.append(...lines);
  };

  const button = document.getElementById("theme");
  const isDark = () => root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const nameButton = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const kept = { // a page opened from a file may have no storage
    get: () => { try { return localStorage.getItem("fedpeft-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("fedpeft-theme", theme); } catch { /* then not */ } },
  };
  if (["light", "dark"].includes(kept.get())) root.dataset.theme = kept.get();
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; kept.set(root.dataset.theme); nameButton(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameButton);
  nameButton();

  document.addEventListener("click", (event) => {
    const target = event.target.closest("button");
    if (!target) return;
    const section = target.closest("section");
    if (target.classList.contains("save")) save(section, target.dataset.figure);
    else if (target.classList.contains("chip")) {
      target.setAttribute("aria-pressed", target.getAttribute("aria-pressed") === "true" ? "false" : "true");
      hide(section);
    } else if (target.closest("thead")) sort(target.closest("th"));
  });

  Promise.all([...document.querySelectorAll("main > section")].map(draw)).then(
    () => { root.dataset.drawn = "yes"; },
    (error) => { root.dataset.drawn = "failed"; console.error(error); },
  );
})();
