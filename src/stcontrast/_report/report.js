"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const table = at("gene-table");
  if (table) {
    const body = table.tBodies[0], rows = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    const show = () => {
      const wanted = at("search").value.trim().toLowerCase(), trust = at("trusted").value;
      let n = 0;
      for (const row of rows) {
        const named = row.cells[0].textContent.toLowerCase().includes(wanted);
        row.hidden = !(named && (!trust || row.dataset.trust === trust));
        n += row.hidden ? 0 : 1;
      }
      at("found").textContent = `${n} of ${rows.length} genes`;
    };
    const sortBy = (column) => {
      const first = column === 0 ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = headers[column].getAttribute("aria-sort") === first ? other : first;
      headers.forEach((header) => header.removeAttribute("aria-sort"));
      headers[column].setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      rows.sort((a, b) => {
        if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
        // what has no value stays last
        if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
        return sign * (Number(value(a)) - Number(value(b)));
      });
      body.append(...rows);
    };
    headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => sortBy(column)));
    at("search").addEventListener("input", show);
    at("trusted").addEventListener("change", show);
  }

  const maps = JSON.parse(at("maps-data").textContent);
  if (!maps) return;
  const NO_VALUE = 255, STEPS = 65535, WIDTH = 900;
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const wide = (text) => { const found = bytes(text); return new Uint16Array(found.buffer); };
  const unpack = (slide) => slide.unpacked ??= {
    x: wide(slide.x), y: wide(slide.y), predicted: bytes(slide.predicted),
    observed: slide.observed && bytes(slide.observed), outside: slide.outside && bytes(slide.outside),
    observed_class: slide.observed_class && bytes(slide.observed_class),
    predicted_class: slide.predicted_class && bytes(slide.predicted_class),
  };
  const picture = (slide) => slide.image ??= new Promise((resolve) => {
    if (!slide.picture) return resolve(null);
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = slide.picture.source;
  });
  const paint = (canvas, slide, image, levels, spots, colors) => {
    canvas.width = WIDTH;
    canvas.height = Math.max(1, Math.round(WIDTH * slide.aspect));
    const pen = canvas.getContext("2d"), parts = unpack(slide);
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (image) {
      const [left, top, width, height] = slide.picture.place;
      pen.globalAlpha = spots && levels ? 0.5 : 1;
      pen.drawImage(image, left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
      pen.globalAlpha = 1;
    }
    if (!spots || !levels) return;
    const radius = Math.max(slide.radius * WIDTH, 1);
    for (let i = 0; i < parts.x.length; i++) {
      pen.beginPath();
      pen.arc(parts.x[i] / STEPS * canvas.width, parts.y[i] / STEPS * canvas.height, radius, 0, 2 * Math.PI);
      pen.fillStyle = levels[i] === NO_VALUE ? "rgba(0,0,0,0)" : colors[levels[i]];
      pen.fill();
      pen.lineWidth = parts.outside && parts.outside[i] ? 2 : 0.5;
      pen.strokeStyle = parts.outside && parts.outside[i] ? "#004bb4" : "#444";
      pen.stroke();
    }
  };
  const same = (one, other) => {
    let known = 0, equal = 0;
    one.forEach((code, i) => { if (code !== NO_VALUE && other[i] !== NO_VALUE) { known++; equal += code === other[i]; } });
    return known ? `: ${Math.round(100 * equal / known)} % of ${known} annotated spots agree` : "";
  };
  const drawClasses = (slide, image, parts, spots) => {
    const { observed_class: observed, predicted_class: predicted } = parts, colors = maps.classes.map((one) => one.color);
    paint(at("observed"), slide, image, observed, spots, colors);
    paint(at("predicted"), slide, image, predicted, spots, colors);
    at("observed-caption").textContent = observed ? `Classes, annotated on ${slide.name}` : `${slide.name}: not annotated`;
    at("predicted-caption").textContent = predicted
      ? "Classes, predicted" + (observed ? same(observed, predicted) : "") : "Classes: not predicted";
  };
  const drawGene = (slide, image, parts, spots, gene) => {
    const n = parts.x.length, of = (values) => values && values.subarray(gene * n, (gene + 1) * n);
    const observed = of(parts.observed), name = maps.genes[gene], r = slide.r[gene];
    paint(at("observed"), slide, image, observed, spots, maps.colors);
    paint(at("predicted"), slide, image, of(parts.predicted), spots, maps.colors);
    at("observed-caption").textContent = observed ? `${name}, observed on ${slide.name}` : `${slide.name}: not measured`;
    at("predicted-caption").textContent = `${name}, predicted` + (r === null ? "" : `, r = ${r.toFixed(2).replace("-", "−")}`);
    at("low").textContent = maps.low[gene].toFixed(2);
    at("high").textContent = maps.high[gene].toFixed(2);
  };
  const draw = async () => {
    const slide = maps.slides[at("slide").value], shown = at("gene").value, spots = at("spots").checked;
    const image = await picture(slide), parts = unpack(slide), ofClasses = shown === "classes";
    if (ofClasses) drawClasses(slide, image, parts, spots);
    else drawGene(slide, image, parts, spots, Number(shown));
    at("scale").hidden = ofClasses;
    if (at("legend")) at("legend").hidden = !ofClasses;
    const drawn = slide.n_drawn < slide.n_spots ? ` ${slide.n_drawn} of them are drawn.` : "";
    const outside = parts.outside ? " Spots with a thick blue edge are out of distribution." : "";
    at("about").textContent = `${slide.name}: ${slide.note}. ${slide.n_spots} spots.${drawn}${outside}`;
  };
  const bar = at("bar").getContext("2d");
  maps.colors.forEach((color, i) => { bar.fillStyle = color; bar.fillRect(i * 256 / maps.colors.length, 0, 2, 14); });
  for (const id of ["slide", "gene", "spots"]) at(id).addEventListener("change", draw);
  draw();
})();
