// Vercel's ai package: each check prints one line of JSON, {"name", "outcome", "detail"}.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, modelName] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "burrstone",
  baseURL,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(modelName);
const schema = z.object({ city: z.enum(["Paris", "Rome"]) });
const prompt = "What is the weather in Paris?";
const brief = { model, temperature: 0, maxOutputTokens: 64, maxRetries: 0 };
const weather = tool({
  description: "Get the weather of a city.",
  inputSchema: schema,
  execute: async ({ city }) => `21 degrees in ${city}`,
});

function expect(truth, what) {
  if (!truth) throw new Error(`expected ${what}`);
}

async function failing(call) {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("expected an error");
}

const checks = {
  text: async () => {
    const result = await generateText({ ...brief, prompt: "Say hello." });
    expect(result.text.length > 0, "text");
    expect(result.usage.outputTokens > 0, "usage");
  },
  "stream with usage": async () => {
    const result = streamText({ ...brief, prompt: "Say hello." });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    expect(text.length > 0 && text === (await result.text), "the pieces to make the whole");
    expect((await result.usage).outputTokens > 0, "usage");
  },
  "tool required": async () => {
    const result = await generateText({ ...brief, prompt, tools: { weather }, toolChoice: "required" });
    expect(result.toolResults.length >= 1, "a tool result");
  },
  "tool named": async () => {
    const toolChoice = { type: "tool", toolName: "weather" };
    const result = await generateText({ ...brief, prompt, tools: { weather }, toolChoice });
    expect(result.toolCalls[0]?.toolName === "weather", "the named tool to be called");
  },
  "tool streamed": async () => {
    const result = streamText({ ...brief, prompt, tools: { weather }, toolChoice: "required" });
    const kinds = [];
    for await (const part of result.fullStream) kinds.push(part.type);
    expect(kinds.includes("tool-call") && kinds.includes("tool-result"), `tool parts, got ${kinds}`);
  },
  "tool result answered": async () => {
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
    const stopWhen = stepCountIs(2);
    const result = await generateText({ ...brief, prompt, tools: { weather }, prepareStep, stopWhen });
    expect(result.steps.length === 2 && result.text.length > 0, "two steps and a text");
  },
  object: async () => {
    const { object } = await generateObject({ ...brief, prompt, schema });
    expect(["Paris", "Rome"].includes(object.city), "an object of the schema");
  },
  "unknown model is a 404": async () => {
    const missing = provider("no-such-model");
    const error = await failing(generateText({ ...brief, model: missing, prompt }));
    expect(APICallError.isInstance(error) && error.statusCode === 404, `APICallError 404, got ${error}`);
    expect(!error.isRetryable, "an error not to be retried");
  },
};

for (const [name, check] of Object.entries(checks)) {
  let outcome = "pass";
  let detail = "";
  try {
    await check();
  } catch (error) {
    outcome = "fail";
    detail = String(error);
  }
  console.log(JSON.stringify({ name, outcome, detail }));
}
