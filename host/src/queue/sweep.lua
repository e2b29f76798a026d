-- Deletes a piece of the history that the original leaves in its streams:
-- entries which were delivered and are not pending. What is left is backlog.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: where to go on (exclusive), or '-'   3: where to end, or
--   '' for what is delivered now   4: how many at most
-- Returns { where to go on or '' at the end, where to end, how many were
-- deleted, how many other groups read the stream }. With other groups nothing is deleted; then,
-- and until the end is reached, the floor says where a lost group begins anew:
-- behind what was delivered, but before all that is pending, which must run.
local key, state, group, from, goal, limit = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local last, others = nil, 0
for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  if fields.name == group then last = fields['last-delivered-id'] else others = others + 1 end
end
if not last then return { '', '', 0, others } end
local floor, pending_from = last, redis.call('XPENDING', key, group)[2]
if pending_from then
  local ms, number = string.match(pending_from, '^(%d+)%-(%d+)$')
  -- The id before it; at its first millisecond that is the whole one before.
  floor = number ~= '0' and ms .. '-' .. string.format('%.0f', number - 1)
    or string.format('%.0f-18446744073709551615', math.max(ms - 1, 0))
end
-- What is delivered meanwhile is not history: to chase it would have no end.
if goal == '' then goal = last end
if others > 0 then
  redis.call('HSET', state, 'floor', floor)
  return { '', goal, 0, others }
end
local entries = redis.call('XRANGE', key, from == '-' and '-' or '(' .. from, goal, 'COUNT', limit)
if #entries == 0 then
  redis.call('HSET', state, 'floor', '0')
  return { '', goal, 0, 0 }
end
redis.call('HSETNX', state, 'floor', floor)
local until_id = entries[#entries][1]
local pending, gone = {}, {}
for _, row in ipairs(redis.call('XPENDING', key, group, entries[1][1], until_id, limit)) do
  pending[row[1]] = true
end
for _, entry in ipairs(entries) do
  if not pending[entry[1]] then gone[#gone + 1] = entry[1] end
end
if #gone > 0 then redis.call('XDEL', key, unpack(gone)) end
return { until_id, goal, #gone, 0 }
