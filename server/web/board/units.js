// How numbers are written: always with their unit, and no more digits than one reads at a glance.

const NONE = "–";

/**
 * @typedef {Object} Unit
 * @property {(value: ?number, like?: ?number) => [string, string]} text gives a figure and the unit
 *   behind it, as fits a value like the second, which is the first where there is none
 */

/** @type {Record<string, Unit>} */
export const UNITS = {
  tokensPerSecond: named("tokens/s"),
  tokensPerPass: named("tokens/pass"),
  tokensPerStep: named("tokens/step"),
  drafts: named("drafts/pass"),
  perMinute: named("in a minute", count),
  times: named("×"),
  requests: named("", count),
  share: { text: (value) => (value === null ? [NONE, ""] : [number(value * 100), "%"]) },
  milliseconds: { text: duration },
  perMillion: named("per 1M tokens"),
};

/** A number of three digits or a few more; none where there is no number. */
export function number(value) {
  if (value === null) return NONE;
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  const decimals = Math.min(Math.max(3 - whole, 0), 2);
  const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return value.toLocaleString("en", digits);
}

/** A number of things. */
export function count(value) {
  return value === null ? NONE : Math.round(value).toLocaleString("en");
}

/** A value with its unit, in one text. */
export function written(value, unit) {
  const [figure, name] = unit.text(value);
  if (!name) return figure;
  return name === "×" || name === "%" ? figure + name : `${figure} ${name}`;
}

/** A range of values, the unit said once where both have the same. */
export function range(low, high, unit) {
  const [lowest, highest] = [written(low, unit), written(high, unit)];
  if (lowest === highest) return lowest;
  const [figure, name] = unit.text(low);
  return name === unit.text(high)[1] ? `${figure} – ${highest}` : `${lowest} – ${highest}`;
}

/** A value at the end of a scale: as short as can be. */
export function atScale(value, unit) {
  const [figure, name] = unit.text(value);
  const short = figure.replace(/\.0+$|(\.\d*[1-9])0+$/, "$1");
  return /^(%|×)$/.test(name) ? short + name : /^(ms|s)$/.test(name) ? `${short} ${name}` : short;
}

/** A time of day with seconds, as the reader's clock has it. */
export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

function named(name, write = number) {
  return { text: (value) => [write(value), value === null ? "" : name] };
}

function duration(milliseconds, like = milliseconds) {
  if (milliseconds === null) return [NONE, ""];
  if (like < 1000) return [number(milliseconds), "ms"];
  return [number(milliseconds / 1000), "s"];
}
