"use strict";
// Draws the charts, paints them in the page's colours, and lets a person change those. Needs BokehJS before it.

const root = document.documentElement;
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function paint(plot) {
  const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
  for (const axis of [...plot.below, ...plot.left]) {
    if ("axis_label" in axis) {
      axis.axis_label_text_color = soft;
      axis.major_label_text_color = soft;
      axis.axis_line_color = line;
      axis.major_tick_line_color = line;
      axis.minor_tick_line_color = null;
    } else if ("click_policy" in axis) {
      axis.label_text_color = ink;
      axis.ncols = window.innerWidth < 600 ? 1 : 2;
      axis.background_fill_alpha = 0;
      axis.inactive_fill_color = colour("--ground");
    }
  }
  for (const grid of plot.center) {
    if ("grid_line_color" in grid) grid.grid_line_color = line;
  }
}

function paintAll() {
  Bokeh.documents.flatMap((drawn) => drawn.roots()).forEach(paint);
}

async function draw() {
  for (const data of document.querySelectorAll("script[type='application/json'][data-chart]")) {
    await Bokeh.embed.embed_item(JSON.parse(data.textContent), data.dataset.chart);
  }
  paintAll();
  root.dataset.drawn = "yes";
}

systemDark.addEventListener("change", paintAll);

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  paintAll();
});

const copy = document.getElementById("copy");
if (copy) {
  copy.addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById("command"));
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    copy.textContent = document.execCommand("copy") ? "copied" : "selected";
  });
}

draw();
