-- Shared by the scripts that settle; it and `order.lua` precede their text.
-- KEYS, ARGV: none. Returns nothing.

-- Notes that these entries are finished and stay for another group: at or before
-- `history` nothing runs again, also when the other group is gone. To be called
-- after an acknowledgement, because after a write Redis refuses none at maxmemory.
local function add_to_history(state, class, ids)
  local field = class == '' and 'history' or 'history:' .. class
  local known = redis.pcall('HGET', state, field)
  if type(known) == 'table' then return end
  local last = known or '0-0'
  for _, id in ipairs(ids) do
    if is_behind(id, last) then last = id end
  end
  if last ~= known then redis.pcall('HSET', state, field, last) end
end

-- Acknowledges finished messages, and deletes their entries unless another group
-- reads the stream. Returns how many it were: a message whose entry was deleted while
-- it was in flight here is one of them.
local function acknowledge(at, ids)
  local count = redis.call('XACK', at.stream, at.group, unpack(ids))
  if at.deletes == '1' then
    redis.call('XDEL', at.stream, unpack(ids))
  else
    add_to_history(at.state, at.class, ids)
  end
  if count == #ids then return count end
  for _, id in ipairs(ids) do
    local field = at.class .. ':' .. id
    if redis.call('HGET', at.deleted, field) == at.consumer then
      count = count + redis.call('HDEL', at.deleted, field)
    end
  end
  return count
end
