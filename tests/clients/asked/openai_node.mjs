// OpenAI's package for Node: chats, streams, parsed answers, tools that are run, responses, embeddings, pictures, masks, batches.
import OpenAI, { toFile } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { DRAWN, DRAWN_ANEW, expectLeftDrawnAnew, seeThrough } from "./halves.mjs";
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
  ["tools in a loop streamed", async () => {
    const asked = [];
    const runner = api.chat.completions.runTools({
      model: TOOLS, messages: [{ role: "user", content: QUESTION }], temperature: 0, max_tokens: 100, stream: true,
      tools: [{ type: "function", function: {
        ...temperature, parse: JSON.parse, function: ({ city }) => { asked.push(city); return ANSWER; },
      } }],
    });
    let parts = 0;
    for await (const chunk of runner) parts += chunk.choices.length;
    const said = await runner.finalContent();
    expect(String(asked) === CITY && said.includes(CITY) && parts > 4, `it asked for ${asked} and said ${said}`);
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
  ["responses with tools", async () => {
    const asked = {
      model: TOOLS, temperature: 0, max_output_tokens: 100, tools: [{ type: "function", strict: false, ...temperature }],
    };
    const input = [{ role: "user", content: QUESTION }];
    const stream = api.responses.stream({ ...asked, input });
    let parts = "";
    stream.on("response.function_call_arguments.delta", (event) => { parts += event.delta; });
    const first = await stream.finalResponse();
    const [call] = first.output.filter((item) => item.type === "function_call");
    expect(call && parts === call.arguments && JSON.parse(parts).city === CITY, `it calls ${JSON.stringify(call)}`);
    const result = { type: "function_call_output", call_id: call.call_id, output: ANSWER };
    const whole = await api.responses.create({ ...asked, input: [...input, ...first.output, result] });
    const short = await api.responses.create({ ...asked, input: [result], previous_response_id: first.id });
    expect(whole.output_text.includes(CITY) && short.output_text === whole.output_text, `it said ${whole.output_text}`);
  }],
  ["embeddings", async () => {
    const input = [BRIEF, QUESTION];
    const made = await api.embeddings.create({ model: LLM, input });
    expect(made.data.length === 2 && made.usage.prompt_tokens > 2, "two texts are not embedded");
    const plain = await api.embeddings.create({ model: LLM, input, encoding_format: "float" });
    const same = made.data.every((item, place) => String(item.embedding) === String(plain.data[place].embedding));
    expect(same && made.data[0].embedding.length > 100, "as numbers they are others than in base64");
  }],
  ["images", async () => {
    const made = await api.images.generate({ model: IMAGES, prompt: "a red circle" });
    expect(made.data[0].b64_json, "there is no picture");
  }],
  ["images edited with a mask", async () => {
    const drawn = await api.images.generate({ model: IMAGES, prompt: DRAWN });
    const before = Buffer.from(drawn.data[0].b64_json, "base64");
    const image = await toFile(before, "a.png", { type: "image/png" });
    const mask = await toFile(seeThrough(before), "mask.png", { type: "image/png" });
    const made = await api.images.edit({ model: IMAGES, image, mask, prompt: DRAWN_ANEW });
    expectLeftDrawnAnew(before, Buffer.from(made.data[0].b64_json, "base64"));
    const kinds = [];
    for await (const event of await api.images.edit({
      model: IMAGES, image: [image], mask, prompt: DRAWN_ANEW, stream: true, partial_images: 1,
    })) kinds.push(event.type);
    expect(String(kinds) === "image_edit.partial_image,image_edit.completed", `events are ${kinds}`);
  }],
  ["files and batches", async () => {
    const line = { custom_id: "a", method: "POST", url: "/v1/embeddings", body: { model: LLM, input: BRIEF } };
    const sent = await api.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "a.jsonl"), purpose: "batch" });
    expect((await api.files.waitForProcessing(sent.id)).status === "processed", "the file is not processed");
    let batch = await api.batches.create({ input_file_id: sent.id, endpoint: "/v1/embeddings", completion_window: "24h" });
    for (let waited = 0; !["completed", "failed"].includes(batch.status) && waited < 300; waited += 1) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      batch = await api.batches.retrieve(batch.id);
    }
    expect(batch.status === "completed", `the batch is ${batch.status}`);
    const answer = JSON.parse(await (await api.files.content(batch.output_file_id)).text());
    expect(answer.response.body.data[0].embedding.length > 100, "the answer is not there");
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
