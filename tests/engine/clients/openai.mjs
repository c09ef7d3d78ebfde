// SPDX-License-Identifier: Apache-2.0
// OpenAI's own client: chats, streams, tools, Responses, models, errors. `node openai.mjs ADDRESS KEY MODEL`
import assert from "node:assert/strict";
import OpenAI, { BadRequestError, NotFoundError } from "openai";

const [address, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "I have had a cough for three days." }];
const ask = { model, messages, max_tokens: 12, temperature: 0 };
const parameters = { type: "object", properties: { of: { type: "string", pattern: "^[a-z]{1,6}$" } }, required: ["of"] };
const tools = [{ type: "function", function: { name: "ask", strict: true, parameters } }];

assert.equal((await client.models.retrieve(model)).id, model);
await assert.rejects(client.models.retrieve("owner/absent"), (error) => error instanceof NotFoundError && error.code === "model_not_found");
await assert.rejects(client.chat.completions.create({ ...ask, max_tokns: 1 }), (error) => error instanceof BadRequestError && error.param === "max_tokns");

const whole = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  text += chunk.choices[0].delta.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);
assert.notEqual(text, "");

// The helper gathers a stream, usage included where it is asked for.
const gathered = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
assert.equal(await gathered.finalContent(), text);
assert.deepEqual((await gathered.totalUsage()).completion_tokens, whole.usage.completion_tokens);

const calling = { ...ask, max_tokens: 300, temperature: 1, seed: 1, tools, tool_choice: "required", parallel_tool_calls: false };
for (const completion of [
  await client.chat.completions.create(calling),
  await client.chat.completions.stream(calling).finalChatCompletion(),
]) {
  const [choice] = completion.choices;
  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.tool_calls[0].function.name, "ask");
  assert.match(JSON.parse(choice.message.tool_calls[0].function.arguments).of, /^[a-z]{1,6}$/);
}

const responding = { model, input: messages, max_output_tokens: 12, temperature: 0 };
const response = await client.responses.create(responding);
const stream = client.responses.stream(responding);
const kinds = [];
for await (const event of stream) kinds.push(event.type);
assert.equal(kinds.at(0), "response.created");
assert.equal(kinds.at(-1), "response.incomplete");
assert.equal((await stream.finalResponse()).output_text, response.output_text);
assert.equal(response.status, "incomplete");
