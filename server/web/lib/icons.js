// Line icons, drawn here so that nothing is fetched for them.

const SPACE = "http://www.w3.org/2000/svg";
const PATHS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "m5 12 5 5 9-10",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M20 11a8 8 0 1 0-2.3 6M20 5v6h-6",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  moon: "M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5z",
  key: "M14 10a4 4 0 1 0-2.8 3.8L13 16h2v2h2v2h3v-3l-6.2-6.2A4 4 0 0 0 14 10z",
  help: "M9 9a3 3 0 1 1 4.2 2.8c-.8.3-1.2.9-1.2 1.7v.5M12 17.5v.1",
  close: "M6 6l12 12M18 6 6 18",
  flag: "M6 21V4h12l-3 4 3 4H6",
  tokens: "M4 6h5v4H4zM12 6h8v4h-8zM4 14h8v4H4zM15 14h5v4h-5z",
};

/** Draw an icon; it says nothing, so what holds it needs a label. */
export function icon(name) {
  const svg = document.createElementNS(SPACE, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SPACE, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
