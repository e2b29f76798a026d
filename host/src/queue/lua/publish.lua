-- Publishes one message, at once or delayed.
-- KEYS 1-7: the topic's stream, state, work, delayed, delayed:body, high, low
--   8: with a window, the marker of the message's id
-- ARGV 1: delay in ms   2: due time in Unix ms, or 0 for the delay   3: priority:
--   high, low, or empty   4: window in ms, or 0 for none   5..: field, value, ...
-- Returns 1, or 0 where the marker exists. Afterwards the message is in its
-- stream, or in delayed with its body.
local topic, class, window = topic_at(1), ARGV[3], tonumber(ARGV[4])
if window > 0 and redis.call('EXISTS', KEYS[8]) == 1 then return 0 end
local fields = {}
for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
local now, due = now_ms(), tonumber(ARGV[2])
if due == 0 then due = now + tonumber(ARGV[1]) end
local stream = target(topic, class)
if due > now then
  check_delayed(topic)
  add_delayed(topic, due, class, fields)
else
  add(stream, fields)
end
if window > 0 then redis.call('SET', KEYS[8], '1', 'PX', integer(window)) end
return 1
