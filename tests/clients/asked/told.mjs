// What a client's script says: one JSON line for each capability.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

export const BASE = process.env.OPENAI_BASE_URL;
export const KEY = process.env.OPENAI_API_KEY;
export const [LLM, TOOLS, IMAGES] = ["llm", "tools_llm", "text_to_image"];
export const BRIEF = "pricing section for a bakery called Golden Lane, three tiers";
export const [QUESTION, CITY, ANSWER] = ["What is the temperature in Paris?", "Paris", "17"];

export function expect(truth, sentence) {
  if (!truth) throw new Error(sentence);
}

// The version that is installed beside the script.
function versionOf(name) {
  const places = createRequire(import.meta.url).resolve.paths(name);
  return JSON.parse(readFileSync(`${places[0]}/${name}/package.json`, "utf8")).version;
}

// Asks all capabilities, a list of [name, function]; exits with 1 where one does not work.
export async function main(client, distribution, capabilities) {
  let broken = 0;
  for (const [capability, ask] of capabilities) {
    let why = "";
    try {
      await ask();
    } catch (error) {
      console.error(error);
      why = String(error?.message ?? error).split("\n")[0].slice(0, 300) || "it fails";
      broken += 1;
    }
    console.log(`\n${JSON.stringify({ client, version: versionOf(distribution), capability, works: !why, why })}`);
  }
  process.exit(broken ? 1 : 0);
}
