-- Publishes one message, at once or later.
-- KEYS 1-5: the topic's stream, state, work stream, later, later:body
-- ARGV 1: delay in ms   2..: field, value, ...
-- Returns 1. Afterwards the message is in the stream, or in later with its body.
local topic = topic_at(1)
local fields = {}
for i = 2, #ARGV do fields[#fields + 1] = ARGV[i] end
local delay = tonumber(ARGV[1])
if delay > 0 then
  target(topic)
  add_later(topic, delay, fields)
else
  add(target(topic), fields)
end
return 1
