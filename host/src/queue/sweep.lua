-- Deletes a piece of the history that the original leaves in its streams:
-- entries which were delivered and are not pending. What is left is backlog.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: where to go on (exclusive), or '-'   3: where to end, since
--   to chase what is delivered meanwhile would have no end   4: how many at most
--   5: no more once they had so many bytes
-- Returns { where to go on or '' at the end, how many were deleted, how many
-- other groups read the stream }. With other groups nothing is deleted; then,
-- and until the end is reached, the floor says where a lost group begins anew:
-- behind what was delivered, but before all that is pending, which must run.
local key, state, group, from, goal = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local limit, bytes_left = tonumber(ARGV[4]), tonumber(ARGV[5])
local last, others = nil, 0
for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  if fields.name == group then last = fields['last-delivered-id'] else others = others + 1 end
end
if not last then return { '', 0, others } end
local floor, pending_from = last, redis.call('XPENDING', key, group)[2]
if pending_from then
  local ms, number = string.match(pending_from, '^(%d+)%-(%d+)$')
  -- The id before it; at its first millisecond that is the whole one before.
  floor = number ~= '0' and ms .. '-' .. string.format('%.0f', number - 1)
    or string.format('%.0f-18446744073709551615', math.max(ms - 1, 0))
end
if others > 0 then
  redis.call('HSET', state, 'floor', floor)
  return { '', 0, others }
end
local ids, behind = {}, from == '-' and '-' or '(' .. from
while #ids < limit and bytes_left > 0 do
  local entry = redis.call('XRANGE', key, behind, goal, 'COUNT', 1)[1]
  if not entry then break end
  ids[#ids + 1], behind = entry[1], '(' .. entry[1]
  for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
end
if #ids == 0 then
  redis.call('HSET', state, 'floor', '0')
  return { '', 0, 0 }
end
-- All that is pending between them: what somebody deleted while it was pending
-- is among it, so there may be more than there are entries.
local until_id, pending, gone = ids[#ids], {}, {}
local pending_behind = ids[1]
repeat
  local rows = redis.call('XPENDING', key, group, pending_behind, until_id, limit)
  for _, row in ipairs(rows) do
    pending[row[1]] = true
    pending_behind = '(' .. row[1]
  end
until #rows < limit
for _, id in ipairs(ids) do
  if not pending[id] then gone[#gone + 1] = id end
end
-- The deletion stands first: behind it nothing is refused at maxmemory. A floor
-- that stands is an older one, or the 0 of a sweep that came to its end.
if #gone > 0 then redis.call('XDEL', key, unpack(gone)) end
redis.call('HSET', state, 'floor', floor)
return { until_id, #gone, 0 }
