// OpenAI's package for Node: chats, streams, parsed answers, tools that are run, responses, pictures.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ANSWER, BRIEF, CITY, IMAGES, LLM, QUESTION, TOOLS, expect, main } from "./told.mjs";

const api = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: BRIEF }];
const Price = z.object({ currency: z.enum(["EUR", "USD"]), monthly: z.boolean() });
const temperature = {
  name: "temperature",
  description: "Degrees in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

await main("openai-node", "openai", [
  ["models", async () => {
    const ids = [];
    for await (const model of api.models.list()) ids.push(model.id);
    expect(ids.includes(LLM) && ids.includes(IMAGES), `models are ${ids}`);
  }],
  ["chat", async () => {
    const made = await api.chat.completions.create({ model: LLM, messages, temperature: 0, max_tokens: 40 });
    expect(made.choices[0].message.content && made.usage.completion_tokens === 40, "the answer is empty");
  }],
  ["chat streamed", async () => {
    const asked = { model: LLM, messages, temperature: 0, max_tokens: 40 };
    const whole = await api.chat.completions.create(asked);
    const stream = api.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    let text = "";
    stream.on("content", (delta) => { text += delta; });
    const final = await stream.finalChatCompletion();
    expect(text === whole.choices[0].message.content && final.usage, "the parts are not the whole");
  }],
  ["parse", async () => {
    const made = await api.chat.completions.parse({
      model: LLM, messages, max_tokens: 100, response_format: zodResponseFormat(Price, "price"),
    });
    expect(["EUR", "USD"].includes(made.choices[0].message.parsed?.currency), "no object was parsed");
  }],
  ["tools in a loop", async () => {
    const asked = [];
    const runner = api.chat.completions.runTools({
      model: TOOLS, messages: [{ role: "user", content: QUESTION }], temperature: 0, max_tokens: 100,
      tools: [{ type: "function", function: {
        ...temperature, parse: JSON.parse, function: ({ city }) => { asked.push(city); return ANSWER; },
      } }],
    });
    const said = await runner.finalContent();
    expect(String(asked) === CITY && said.includes(CITY), `it asked for ${asked} and said ${said}`);
  }],
  ["completions", async () => {
    const made = await api.completions.create({ model: LLM, prompt: "<section", max_tokens: 8 });
    expect(made.choices[0].text, "the answer is empty");
  }],
  ["responses", async () => {
    const made = await api.responses.create({ model: LLM, input: BRIEF, max_output_tokens: 20 });
    expect(made.output_text, "the answer is empty");
    let text = "";
    for await (const event of await api.responses.create({ model: LLM, input: BRIEF, max_output_tokens: 20, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    expect(text, "the stream is empty");
  }],
  ["images", async () => {
    const made = await api.images.generate({ model: IMAGES, prompt: "a red circle" });
    expect(made.data[0].b64_json, "there is no picture");
  }],
  ["errors by their classes", async () => {
    try {
      await api.chat.completions.create({ model: "nothing", messages });
    } catch (error) {
      expect(error instanceof OpenAI.NotFoundError && error.code === "model_not_found", `it is ${error}`);
      return;
    }
    expect(false, "a model that is not served is no error");
  }],
]);
