-- Finds a batch of the entries that were passed over before we first opened the
-- group, and deletes them if asked to.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: the stream's class in tokens   3: where to continue
--   (exclusive), or '-'   4: the most entries of the batch   5: the bytes after
--   which it ends   6: 1 to delete
-- Returns { where to continue or '' at the end, how many there are in the batch }.
-- Afterwards `purged` in the state has counted those that were deleted.
local key, state, group, from = KEYS[1], KEYS[2], ARGV[1], ARGV[3]
if redis.call('TYPE', key).ok ~= 'stream' then return { '', 0 } end
local at = positions(key, state, group, ARGV[2])
if not at or not is_behind(at.start, at.history) then return { '', 0 } end
if from == '-' then from = at.history end
local ids = batch_behind(key, from, at.start, tonumber(ARGV[4]), tonumber(ARGV[5]))
if #ids == 0 then return { '', 0 } end
local pending, found = pending_between(key, group, ids[1], ids[#ids]), {}
for _, id in ipairs(ids) do
  if not pending[id] then found[#found + 1] = id end
end
if ARGV[6] == '1' and #found > 0 then
  redis.call('XDEL', key, unpack(found))
  redis.pcall('HINCRBY', state, 'purged', #found)
end
return { ids[#ids], #found }
