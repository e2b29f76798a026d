-- Renews the leases of what this process is running.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3..: the ids that I hold
-- Returns the ids among them that are no longer mine. Afterwards the others
-- are fresh, with owner and delivery count as before.
local mine, held, lost = {}, {}, {}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  mine[row[1]] = true
end
for i = 3, #ARGV do
  local list = mine[ARGV[i]] and held or lost
  list[#list + 1] = ARGV[i]
end
for first = 1, #held, 1000 do
  local command = { 'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0 }
  for i = first, math.min(first + 999, #held) do command[#command + 1] = held[i] end
  command[#command + 1] = 'JUSTID'
  redis.call(unpack(command))
end
return lost
-- As it was with queue-1.jsonl.
