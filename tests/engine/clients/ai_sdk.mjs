// SPDX-License-Identifier: Apache-2.0
// The AI SDK by Vercel, with its providers for OpenAI (chats and Responses) and for what is compatible with it.
// `node ai_sdk.mjs ADDRESS KEY MODEL`
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [address, apiKey, name] = process.argv.slice(2);
const baseURL = `${address}/v1`;
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "aerie", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const prompt = "I have had a cough for three days.";
const tools = {
  ask: tool({ description: "Ask", inputSchema: z.object({ of: z.string().regex(/^[a-z]{1,6}$/) }), strict: true }),
};

for (const model of [openai.chat(name), compatible(name), openai.responses(name)]) {
  const ask = { model, prompt, maxOutputTokens: 12, temperature: 0, maxRetries: 0 };
  const whole = await generateText(ask);
  const streamed = streamText(ask);
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, whole.text);
  assert.notEqual(text, "");
  assert.equal(whole.finishReason, "length");
  assert.equal(await streamed.finishReason, "length");
  assert.equal((await streamed.usage).outputTokens, 12);
}

for (const model of [openai.chat(name), compatible(name)]) {
  const ask = { model, prompt, maxOutputTokens: 300, temperature: 1, seed: 1, maxRetries: 0, tools, toolChoice: "required" };
  const { toolCalls } = await generateText(ask);
  assert.equal(toolCalls[0].toolName, "ask");
  const streamed = streamText(ask);
  await streamed.consumeStream();
  assert.match((await streamed.toolCalls)[0].input.of, /^[a-z]{1,6}$/);

  const schema = z.object({ urgent: z.boolean() });
  const { output } = await generateText({ ...ask, tools: undefined, toolChoice: undefined, output: Output.object({ schema }) });
  assert.equal(typeof output.urgent, "boolean");
}
