-- Deletes a batch of the history in a legacy stream: entries that were delivered
-- and are not pending.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: where to continue (exclusive), or '-'   3: the last id to
--   read, so that the sweep ends while messages are delivered   4: the most
--   entries of the batch   5: the bytes after which it ends
-- Returns { where to continue or '' at the end, how many were deleted, how many
-- other groups read the stream }. With other groups nothing is deleted. In that
-- case, and until a sweep has reached its end, the floor in the state says where
-- a recreated group begins: behind the delivered entries, but before all pending
-- ones, which have to run.
local key, state, group, from, last_id = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
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
  -- The id before it; the first id of a millisecond follows the last one of the
  -- millisecond before.
  floor = number ~= '0' and ms .. '-' .. string.format('%.0f', number - 1)
    or string.format('%.0f-18446744073709551615', math.max(ms - 1, 0))
end
if others > 0 then
  redis.call('HSET', state, 'floor', floor)
  return { '', 0, others }
end
local ids, behind = {}, from == '-' and '-' or '(' .. from
while #ids < limit and bytes_left > 0 do
  local entry = redis.call('XRANGE', key, behind, last_id, 'COUNT', 1)[1]
  if not entry then break end
  ids[#ids + 1], behind = entry[1], '(' .. entry[1]
  for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
end
if #ids == 0 then
  redis.call('HSET', state, 'floor', '0')
  return { '', 0, 0 }
end
-- All pending ids in the range. They include entries that were deleted while they
-- were pending, so there may be more of them than entries.
local until_id, pending, finished = ids[#ids], {}, {}
local pending_behind = ids[1]
repeat
  local rows = redis.call('XPENDING', key, group, pending_behind, until_id, limit)
  for _, row in ipairs(rows) do
    pending[row[1]] = true
    pending_behind = '(' .. row[1]
  end
until #rows < limit
for _, id in ipairs(ids) do
  if not pending[id] then finished[#finished + 1] = id end
end
-- The deletion comes first, because after one Redis refuses no write at
-- maxmemory. Until then the stored floor is older, or the 0 of a completed sweep.
if #finished > 0 then redis.call('XDEL', key, unpack(finished)) end
redis.call('HSET', state, 'floor', floor)
return { until_id, #finished, 0 }
