-- Publishes one message, at once or later.
-- KEYS 1-7: the topic's stream, state, work, later, later:body, high, low
--   8: where a window is given, the marker of what was published in it
-- ARGV 1: delay in ms   2: due time in Unix ms, 0 to go by the delay
--   3: priority: high, low, or empty   4: window in ms, 0 for none
--   5..: field, value, ...
-- Returns 1, or 0 where the marker stood. Afterwards the message is in its
-- stream, or in later with its body.
local topic, class, window = topic_at(1), ARGV[3], tonumber(ARGV[4])
if window > 0 and redis.call('EXISTS', KEYS[8]) == 1 then return 0 end
local fields = {}
for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
local now, due = now_ms(), tonumber(ARGV[2])
if due == 0 then due = now + tonumber(ARGV[1]) end
local stream = target(topic, class)
if due > now then
  must_take_later(topic)
  add_later(topic, due, class, fields)
else
  add(stream, fields)
end
if window > 0 then redis.call('SET', KEYS[8], '1', 'PX', whole(window)) end
return 1
