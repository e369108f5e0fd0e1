// Vercel's AI SDK through its OpenAI-compatible provider: text, streams, objects, an agent's loop, embeddings, pictures, masks; and
// through its own provider for OpenAI, which asks for responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";
import { DRAWN, DRAWN_ANEW, expectLeftDrawnAnew, seeThrough } from "./halves.mjs";
import { ANSWER, BASE, BRIEF, CITY, IMAGES, KEY, LLM, QUESTION, TOOLS, expect, main } from "./told.mjs";

const provider = createOpenAICompatible({
  name: "nereid", baseURL: BASE, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
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
  ["tools' inputs streamed", async () => {
    for (const model of [provider(TOOLS), openai.chat(TOOLS), openai(TOOLS)]) {
      const kinds = new Set();
      const made = ai.streamText({
        ...asked, model, prompt: QUESTION, tools: { temperature: temperature([]) }, stopWhen: ai.stepCountIs(4),
      });
      for await (const part of made.fullStream) kinds.add(part.type);
      expect(kinds.has("tool-input-delta") && kinds.has("tool-result") && !kinds.has("error"), `parts are ${[...kinds]}`);
    }
  }],
  ["generateObject", async () => {
    for (const model of [provider(LLM), openai.chat(LLM), openai(LLM)]) {
      const made = await ai.generateObject({ ...asked, model, schema: Price });
      expect(["EUR", "USD"].includes(made.object.currency), `it is ${JSON.stringify(made.object)}`);
      const chosen = await ai.generateObject({ ...asked, model, output: "enum", enum: ["x", "y"] });
      expect(["x", "y"].includes(chosen.object), `it chose ${chosen.object}`);
      const stream = ai.streamObject({ ...asked, model, schema: Price });
      let last;
      for await (const part of stream.partialObjectStream) last = part;
      expect(JSON.stringify(last) === JSON.stringify(await stream.object), "the parts are not the whole");
    }
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
  ["images edited with a mask", async () => {
    const draw = { model: provider.imageModel(IMAGES), maxRetries: 0 };
    const before = (await ai.generateImage({ ...draw, prompt: DRAWN })).image.uint8Array;
    const prompt = { text: DRAWN_ANEW, images: [before], mask: seeThrough(before) };
    expectLeftDrawnAnew(before, (await ai.generateImage({ ...draw, prompt })).image.uint8Array);
  }],
  ["embeddings", async () => {
    const model = provider.embeddingModel(LLM);
    const made = await ai.embedMany({ model, values: [BRIEF, QUESTION], maxRetries: 0 });
    const alone = await ai.embed({ model, value: QUESTION, maxRetries: 0 });
    expect(made.embeddings.length === 2 && made.usage.tokens > 2, "two texts are not embedded, or usage is not told");
    expect(ai.cosineSimilarity(made.embeddings[1], alone.embedding) > 0.9999, "a text alone has another embedding");
    const other = await ai.embed({ model: openai.embeddingModel(LLM), value: QUESTION, maxRetries: 0 });
    expect(String(other.embedding) === String(alone.embedding), "by the provider for OpenAI it is another one");
  }],
  ["responses API", async () => {
    const made = await ai.generateText({ ...asked, model: openai(LLM) });
    expect(made.text && made.usage.outputTokens === 60, "the answer is empty, or tells no usage");
    let text = "";
    for await (const delta of ai.streamText({ ...asked, model: openai(LLM) }).textStream) text += delta;
    expect(text === made.text, "the parts are not the whole");
    const typed = await ai.generateText({ ...asked, model: openai(LLM), output: ai.Output.object({ schema: Price }) });
    expect(["EUR", "USD"].includes(typed.output.currency), `it is ${JSON.stringify(typed.output)}`);
  }],
  ["agent's loop over responses", async () => {
    for (const ask of [ai.generateText, ai.streamText]) {
      const cities = [];
      const made = await ask({
        ...asked, model: openai(TOOLS), prompt: QUESTION, tools: { temperature: temperature(cities) },
        stopWhen: ai.stepCountIs(4),
      });
      const text = await made.text;
      expect(String(cities) === CITY && text.includes(CITY), `${ask.name}: it asked for ${cities} and said ${text}`);
    }
  }],
]);
