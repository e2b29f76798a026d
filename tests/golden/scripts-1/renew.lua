-- Renews the leases of messages in flight.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3..: the ids in flight
-- Returns those ids that are no longer ours. Afterwards the leases of the others
-- are renewed, with consumer and delivery count unchanged.
local pending, ours, lost = {}, {}, {}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  pending[row[1]] = true
end
for i = 3, #ARGV do
  local list = pending[ARGV[i]] and ours or lost
  list[#list + 1] = ARGV[i]
end
for first = 1, #ours, 1000 do
  local command = { 'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0 }
  for i = first, math.min(first + 999, #ours) do command[#command + 1] = ours[i] end
  command[#command + 1] = 'JUSTID'
  redis.call(unpack(command))
end
return lost
-- As it was with queue-1.jsonl.
