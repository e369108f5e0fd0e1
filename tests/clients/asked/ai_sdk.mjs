// Vercel's AI SDK through its OpenAI-compatible provider: text, streams, objects, an agent's loop, pictures.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";
import { ANSWER, BASE, BRIEF, CITY, IMAGES, KEY, LLM, QUESTION, TOOLS, expect, main } from "./told.mjs";

const provider = createOpenAICompatible({
  name: "nereid", baseURL: BASE, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const Price = z.object({ currency: z.enum(["EUR", "USD"]), monthly: z.boolean() });
const asked = { model: provider(LLM), prompt: BRIEF, temperature: 0, maxOutputTokens: 60, maxRetries: 0 };

function temperature(cities) {
  return ai.tool({
    description: "Degrees in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => { cities.push(city); return ANSWER; },
  });
}

await main("Vercel AI SDK", "ai", [
  ["generateText", async () => {
    const made = await ai.generateText(asked);
    expect(made.text && made.usage.outputTokens === 60, "the answer is empty, or tells no usage");
  }],
  ["streamText", async () => {
    let text = "";
    const made = ai.streamText(asked);
    for await (const delta of made.textStream) text += delta;
    expect(text === (await ai.generateText(asked)).text, "the parts are not the whole");
    expect((await made.usage).outputTokens === 60, "the stream tells no usage");
  }],
  ["objects", async () => {
    const made = await ai.generateText({ ...asked, output: ai.Output.object({ schema: Price }) });
    expect(["EUR", "USD"].includes(made.output.currency), `it is ${JSON.stringify(made.output)}`);
  }],
  ["objects streamed", async () => {
    const made = ai.streamText({ ...asked, output: ai.Output.object({ schema: Price }) });
    let last;
    for await (const part of made.partialOutputStream) last = part;
    expect(["EUR", "USD"].includes(last?.currency), `it is ${JSON.stringify(last)}`);
  }],
  ["agent's loop", async () => {
    const cities = [];
    const made = await ai.generateText({
      ...asked, model: provider(TOOLS), prompt: QUESTION, tools: { temperature: temperature(cities) },
      stopWhen: ai.stepCountIs(4),
    });
    expect(String(cities) === CITY && made.text.includes(CITY), `it asked for ${cities} and said ${made.text}`);
  }],
  ["agent's loop streamed", async () => {
    const cities = [];
    const made = ai.streamText({
      ...asked, model: provider(TOOLS), prompt: QUESTION, tools: { temperature: temperature(cities) },
      stopWhen: ai.stepCountIs(4),
    });
    const text = await made.text;
    expect(String(cities) === CITY && text.includes(CITY), `it asked for ${cities} and said ${text}`);
  }],
  ["completion model", async () => {
    const made = await ai.generateText({ ...asked, model: provider.completionModel(LLM), prompt: "<section" });
    expect(made.text, "the answer is empty");
  }],
  ["images", async () => {
    const draw = ai.generateImage ?? ai.experimental_generateImage;
    const made = await draw({ model: provider.imageModel(IMAGES), prompt: "a red circle", size: "128x128", maxRetries: 0 });
    expect(made.image.uint8Array.length > 100, "there is no picture");
  }],
]);
