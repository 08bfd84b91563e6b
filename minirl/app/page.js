// what all pages share: their numbers, and ways to write them
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const minus = text => text.replace("-", "\u2212").replace("e-", "e\u2212");
const short = x => x === null || x === undefined ? "–"
  : x === 0 ? "0" : minus(Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3 ? x.toExponential(2)
  : String(+x.toPrecision(4)));
