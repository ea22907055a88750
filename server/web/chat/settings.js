// How answers are sampled: kept in the browser, and turned into the fields of a request.

const NAME = "outdraft.settings";

/** What an empty field means is the server's to say. */
export const DEFAULTS = {
  temperature: "",
  topP: "",
  maxTokens: "",
  seed: "",
  speculation: "auto",
  maxDrafts: "4",
  alternatives: "4",
  view: "text",
};

/** Give the settings of this browser. */
export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(NAME) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

/** Keep the settings. */
export function keepSettings(settings) {
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // Without storage they last as long as the page.
  }
}

/** Give a seed that can be told and used again. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * Give the fields of a request.
 *
 * @param {typeof DEFAULTS} settings
 * @param {boolean} canTellAlternatives
 */
export function requestFields(settings, canTellAlternatives) {
  const fields = { seed: settings.seed === "" ? randomSeed() : Number(settings.seed) };
  if (settings.temperature !== "") fields.temperature = Number(settings.temperature);
  if (settings.topP !== "") fields.top_p = Number(settings.topP);
  if (settings.maxTokens !== "") fields.max_tokens = Number(settings.maxTokens);
  const alternatives = Number(settings.alternatives);
  if (alternatives > 0 && canTellAlternatives) {
    fields.logprobs = true;
    fields.top_logprobs = alternatives;
  }
  return { ...fields, speculation: speculationFields(settings) };
}

function speculationFields({ speculation, maxDrafts }) {
  if (speculation === "off") return { enabled: false, report: true };
  if (speculation === "on") return { enabled: true, max_draft_tokens: Number(maxDrafts), report: true };
  return { report: true };
}
