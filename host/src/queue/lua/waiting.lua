-- Shared by the scripts that search, cancel and purge; it and
-- `order.lua` precede their text.
-- KEYS, ARGV: none. Returns nothing.

-- The id behind which a stream's entries wait, and how many other groups read
-- it; nil where the key is no stream. Without our group, entries up to the floor
-- were delivered before.
local function waits_behind(stream, state, group)
  if redis.call('TYPE', stream).ok ~= 'stream' then return nil, 0 end
  local last, others = nil, 0
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields.name == group then last = fields['last-delivered-id'] else others = others + 1 end
  end
  if not last and state then
    local class = string.match(stream, '^{.*}:(%a+)$')
    last = redis.call('HGET', state, class and 'floor:' .. class or 'floor')
  end
  return full(last or '0'), others
end

-- Has to be called after items of a list were deleted: an empty list is no key,
-- and the next publication would make it a stream for ever. Only the topic's main
-- key is a list of plain clients. After a deletion Redis does not refuse this
-- write at maxmemory.
local function remember_list(list, state)
  if state ~= '{' .. list .. '}:state' then return end
  if redis.call('HGET', state, 'kind') ~= 'list' then redis.call('HSET', state, 'kind', 'list') end
end
