-- Removes idle consumers without pending entries from a group. One with pending
-- entries must stay: its entries would be delivered and belong to no consumer.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3: the idle time in ms   4: the most
--   consumers to remove
-- Returns how many were removed. A consumer that waits in a blocking read all the
-- time is added again with the next message that it gets.
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  local is_gone = fields.pending == 0 and fields.idle >= tonumber(ARGV[3]) and fields.name ~= ARGV[2]
  if is_gone and removed < tonumber(ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fields.name)
    removed = removed + 1
  end
end
return removed
