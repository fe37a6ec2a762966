const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line");
  const clear = "rgba(0,0,0,0)";
  return Object.assign({}, layout, {
    paper_bgcolor: clear, plot_bgcolor: clear, font: {color: ink, size: 13},
    xaxis: Object.assign({}, layout.xaxis, {gridcolor: line, zerolinecolor: line}),
    yaxis: Object.assign({}, layout.yaxis, {gridcolor: line, zerolinecolor: line}),
  });
}
function draw() {
  figures.forEach((each, k) => Plotly.react("chart" + k, each.data, paint(each.layout),
    {responsive: true, displayModeBar: false}));
}
draw();
dark.addEventListener("change", draw);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(
  each => each.open = true));
