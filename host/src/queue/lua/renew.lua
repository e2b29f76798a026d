-- Renews the leases of messages in flight.
-- KEYS 1: stream   2: deleted
-- ARGV 1: group   2: our consumer   3: the stream's class in tokens   4: how long
--   `deleted` is stored, in ms   5..: the ids in flight in their order, at most 1000
-- Returns { the ids that another consumer has now, those that no consumer has, ids of
-- ours whose entries were deleted }.
-- Afterwards the leases of the others are renewed, with consumer and delivery count
-- unchanged. Redis removes the pending row of a deleted entry in a renewal, so
-- `deleted` remembers whose it was.
local stream, deleted_key, group, consumer, class = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local pending, ours, absent = {}, {}, {}
for _, row in ipairs(redis.call('XPENDING', stream, group, ARGV[5], ARGV[#ARGV], 100000, consumer)) do
  pending[row[1]] = true
end
for i = 5, #ARGV do
  local list = pending[ARGV[i]] and ours or absent
  list[#list + 1] = ARGV[i]
end
local renewed, taken, gone, deleted = {}, {}, {}, {}
if #ours > 0 then
  local command = { 'XCLAIM', stream, group, consumer, 0 }
  for _, id in ipairs(ours) do command[#command + 1] = id end
  command[#command + 1] = 'JUSTID'
  for _, id in ipairs(redis.call(unpack(command))) do renewed[id] = true end
end
for _, id in ipairs(ours) do
  if not renewed[id] then
    redis.call('HSET', deleted_key, class .. ':' .. id, consumer)
    deleted[#deleted + 1] = id
  end
end
-- Those of an earlier renewal, whose reply may have been lost.
for _, id in ipairs(absent) do
  local list = gone
  if redis.call('HGET', deleted_key, class .. ':' .. id) == consumer then
    list = deleted
  elseif #redis.call('XPENDING', stream, group, id, id, 1) > 0 then
    list = taken
  end
  list[#list + 1] = id
end
if #deleted > 0 then redis.call('PEXPIRE', deleted_key, ARGV[4]) end
return { taken, gone, deleted }
