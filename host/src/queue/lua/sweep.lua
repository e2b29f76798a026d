-- Looks at a batch of what was delivered and is not pending: deletes history, and
-- finds what was never ours and what is unfinished.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: where to continue (exclusive), or '-'   3: the last id to
--   read, so that the sweep ends while messages are delivered   4: the most
--   entries of the batch   5: the bytes after which it ends   6: the stream's
--   class in tokens   7: 1 to pass over what was never ours
-- Returns { where to continue or '' at the end, how many other groups read the
-- stream, ids deleted, ids never ours, ids unfinished }. With other groups there
-- are none. In that case, while some were never ours, and until a sweep has reached
-- its end, the floor in the state says where a recreated group begins: behind the
-- delivered entries, but before all pending ones, which have to run.
local key, state, group, from, last_id = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local class = ARGV[6]
local at, others = positions(key, state, group, class)
if not at then return { '', others, {}, {}, {} } end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Whether a legacy worker has asked for messages since the last look. Such a
-- worker acknowledges and never deletes.
local function has_legacy_worker()
  for _, list in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    local info = info_of(list)
    if string.match(info.name, '^consumer%-%d+$') and (not at.looked or info.idle <= now - at.looked + 100) then
      return true
    end
  end
  return false
end

if others > 0 or has_legacy_worker() then at.history = at.last end

local function floor()
  local first = redis.call('XPENDING', key, group)[2]
  if not first then return at.last end
  local ms, number = string.match(first, '^(%d+)%-(%d+)$')
  -- The id before it; the first id of a millisecond follows the last one of the
  -- millisecond before.
  return number ~= '0' and ms .. '-' .. string.format('%.0f', number - 1)
    or string.format('%.0f-18446744073709551615', math.max(ms - 1, 0))
end

-- To be called after the deletion, because after one Redis refuses no write at
-- maxmemory. What is stored otherwise is older, which is safe.
local function store(floor_id)
  redis.pcall('HSET', state, field_for('floor', class), floor_id, field_for('start', class), at.start,
    field_for('history', class), at.history, field_for('looked', class), string.format('%.0f', now))
end

if others > 0 then
  store(floor())
  return { '', others, {}, {}, {} }
end
local has_never_ours = is_behind(at.start, at.history)
  and #redis.call('XRANGE', key, '(' .. at.history, at.start, 'COUNT', 1) > 0
if from == '-' and ARGV[7] == '1' and has_never_ours then from = at.start end
local ids = batch_behind(key, from, last_id, tonumber(ARGV[4]), tonumber(ARGV[5]))
if #ids == 0 then
  store(has_never_ours and floor() or '0')
  return { '', 0, {}, {}, {} }
end
local pending = pending_between(key, group, ids[1], ids[#ids])
local history, never_ours, unfinished = {}, {}, {}
for _, id in ipairs(ids) do
  local list = not is_behind(id, at.history) and history or not is_behind(id, at.start) and never_ours or unfinished
  if not pending[id] then list[#list + 1] = id end
end
if #history > 0 then redis.call('XDEL', key, unpack(history)) end
store(floor())
if #history > 0 then redis.call('HINCRBY', state, 'swept', #history) end
return { ids[#ids], 0, history, never_ours, unfinished }
